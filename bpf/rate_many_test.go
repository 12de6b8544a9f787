package bpf_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// many gives packets to the program from two CPUs at once until there were so many, each of them later
// than the one before by a step, and of the next source. It returns how many were given, and how many
// of each source were let through. On a busy machine the CPUs may miss each other: then it tries again.
func (k *kernel) many(t *testing.T, frame []byte, sources, packets uint64, step time.Duration) (given uint64, passed []uint64) {
	t.Helper()
	var turns uint64
	for range 100 {
		if given, turns, passed = k.tryMany(t, frame, sources, packets, step); turns >= given/10 {
			return given, passed[:sources]
		}
	}
	t.Fatalf("only before %d of %d packets the other CPU had one: they do not run at once", turns, given)
	return 0, nil
}

func (k *kernel) tryMany(t *testing.T, frame []byte, sources, packets uint64, step time.Duration) (given, turns uint64, passed []uint64) {
	t.Helper()
	k.at(t, 5_000_000_000_000)
	k.words(t, k.BermRateCells, 0, make([]uint64, 8*rateSets)...)
	passed = make([]uint64, 256)
	for v, to := range map[*ebpf.Variable]any{
		k.TestStepNs: uint64(step), k.TestSources: sources - 1, k.TestGiven: uint64(0), k.TestTurns: uint64(0), k.TestPassed: passed,
	} {
		if err := v.Set(to); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	cpus := twoCPUs(t)
	for _, cpu := range cpus {
		go func() { done <- k.giveFrom(cpu, frame, packets) }()
	}
	var errs []error
	for range cpus {
		errs = append(errs, <-done)
	}
	errs = append(errs, k.TestGiven.Get(&given), k.TestTurns.Get(&turns), k.TestPassed.Get(&passed))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return given, turns, passed
}

// giveFrom runs the program on one CPU until all CPUs together have given it so many packets.
func (k *kernel) giveFrom(cpu int, frame []byte, packets uint64) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	for given := uint64(0); given < packets; {
		_, err := k.XdpBermMany.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(packets / 8)})
		if err != nil && !errors.Is(err, unix.EINTR) { // which Go's signals cause
			return err
		}
		if err := k.TestGiven.Get(&given); err != nil {
			return err
		}
	}
	return nil
}

// twoCPUs are two that this process may run on.
func twoCPUs(t *testing.T) (cpus []int) {
	t.Helper()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; cpu < 64*len(may) && len(cpus) < 2; cpu++ {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	if len(cpus) < 2 {
		Require(t, errors.New("needs two CPUs"))
	}
	return cpus
}

// Sources that send ten times their limit through two CPUs at once get their limit within 2 %, all together
// and each of them, in packets and in bytes, on either clock.
func TestRateAccuracyTwoCPUs(t *testing.T) {
	const perSecond, burst, each = 1000, 10, 40_000 // packets of a source: four seconds' worth
	packets := func(c *bpf.XDPBermRateClass, _ uint64) {
		c.Packets.Cost, c.Packets.BurstUnits = limit(perSecond, burst)
	}
	octets := func(c *bpf.XDPBermRateClass, size uint64) {
		c.Bytes.Cost, c.Bytes.BurstUnits = limit(perSecond*size, burst*size)
	}
	fine := func(c *bpf.XDPBermRateClass, _ uint64) {
		c.Flags = uint16(bpf.XDPBermRateFlagsBERM_RATE_FINE_CLOCK)
	}
	type limits = []func(c *bpf.XDPBermRateClass, size uint64)
	for _, c := range []struct {
		name    string
		limits  limits
		sources uint64
	}{
		{"packets of one source", limits{packets}, 1},
		{"packets of one source, precise clock", limits{packets, fine}, 1},
		{"bytes of one source", limits{octets}, 1},
		{"bytes of one source, precise clock", limits{octets, fine}, 1},
		{"packets and bytes of two sources", limits{packets, octets}, 2},
		{"packets of 64 sources", limits{packets}, 64},
		{"bytes of 64 sources, precise clock", limits{octets, fine}, 64},
	} {
		for _, six := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, IPv6 %v", c.name, six), func(t *testing.T) {
				k := newKernel(t)
				in := good(six)
				var class bpf.XDPBermRateClass
				for _, set := range c.limits {
					set(&class, uint64(len(in)-14))
				}
				k.class(t, class)
				for _, vip := range []string{"web", "web6"} { // delivered here: the frame stays as it is
					inSet(vip, setNone)(t, k)
				}
				step := time.Second / perSecond / 10 / time.Duration(c.sources)
				given, passed := k.many(t, in, c.sources, each*c.sources, step)
				allowed := time.Duration(given).Seconds()*float64(step)*perSecond + burst
				var all uint64
				for n, passed := range passed {
					all += passed
					if off := float64(passed) - allowed; off > 0.02*allowed || off < -0.02*allowed {
						t.Errorf("%d packets of source %d passed, want %.0f within 2 %%", passed, n, allowed)
					}
				}
				allowed *= float64(c.sources)
				t.Logf("%d packets passed, %+.3f %% off", all, 100*(float64(all)-allowed)/allowed)
			})
		}
	}
}
