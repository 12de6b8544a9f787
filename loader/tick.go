package loader

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// rateUnit is the unit of rate cells and limits in the contract.
const rateUnit = 64 * time.Nanosecond

// tickPatience is how long the kernel's count may take to agree with the clock.
const tickPatience = 2 * time.Second

// tickMeter finds the length of a jiffy, in which the kernel half counts time. The kernel tells it
// as the resolution of its coarse clock; that is checked against bpf_jiffies64 itself over the
// time that loading takes anyhow, because a wrong tick scales every rate limit.
type tickMeter struct {
	prog    *ebpf.Program
	jiffies uint32
	at      time.Time
}

func (t *tickMeter) start() (err error) {
	t.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "berm_tick", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.FnJiffies64.Call(), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("measure the kernel's tick: %w", err)
	}
	t.jiffies, t.at, err = t.read()
	return err
}

func (t *tickMeter) read() (uint32, time.Time, error) {
	n, err := t.prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 1})
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("measure the kernel's tick: %w", err)
	}
	return n, time.Now(), nil
}

// length returns the tick. The measurement is good to one jiffy at each end, so that disagreement by more
// than two means that one of the two is wrong about a whole factor.
func (t *tickMeter) length() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("resolution of the coarse clock: %w", err)
	}
	tick := time.Duration(ts.Nano())
	if tick < 100*time.Microsecond || tick > 100*time.Millisecond {
		return 0, fmt.Errorf("tick of %s is implausible (10 ms to 1 ms are usual)", tick)
	}
	if t.prog == nil {
		return 0, errors.New("tick meter was not started")
	}
	for {
		now, at, err := t.read()
		if err != nil {
			return 0, err
		}
		counted := time.Duration(now-t.jiffies) * tick
		passed := at.Sub(t.at)
		agrees := (counted - passed).Abs() <= 2*tick+passed/10
		switch {
		case passed >= 8*tick && agrees:
			return tick, nil
		case passed >= tickPatience:
			return 0, fmt.Errorf("the kernel says a tick of %s, but counted %d of them in %s", tick, now-t.jiffies, passed)
		}
		// Below eight ticks two of error say little, and a virtual machine that was not run for a
		// while counts what it missed later: let the clock run on.
		if err := unix.Nanosleep(&unix.Timespec{Nsec: tick.Nanoseconds()}, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, err
		}
	}
}

func (t *tickMeter) Close() error {
	if t.prog == nil {
		return nil
	}
	return t.prog.Close()
}
