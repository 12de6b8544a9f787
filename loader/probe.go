package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Need is one thing that the kernel half asks of the kernel or of the caller.
type Need struct {
	Name  string `json:"name"`
	Since string `json:"since,omitempty"` // first kernel version with it
	Hint  string `json:"hint,omitempty"`
	Err   error  `json:"-"` // why it counts as missing
}

// MissingError names everything that is missing at once.
type MissingError struct {
	Kernel string
	Needs  []Need
}

func (e *MissingError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s lacks what Berm needs:", e.Kernel)
	for _, n := range e.Needs {
		fmt.Fprintf(&b, "\n\t%s", n.Name)
		if n.Since != "" {
			fmt.Fprintf(&b, " (since Linux %s)", n.Since)
		}
		if n.Hint != "" {
			fmt.Fprintf(&b, ": %s", n.Hint)
		}
		if n.Err != nil && !errors.Is(n.Err, ebpf.ErrNotSupported) {
			fmt.Fprintf(&b, " [%v]", n.Err)
		}
	}
	return b.String()
}

// Probe asks the running kernel for everything that the embedded programs need, and returns a
// *MissingError that names what is not there. It changes nothing.
func Probe() error {
	objs, err := embedded()
	if err != nil {
		return err
	}
	return probe(objs)
}

func probe(objs *objects) error {
	missing := &MissingError{Kernel: kernelRelease()}
	// Without privilege every other answer would be about that.
	if n := needPrivilege(); n.Err != nil {
		missing.Needs = append(missing.Needs, n)
		return missing
	}
	for _, f := range []func(*objects) []Need{needPrograms, needMaps, needInstructions, needHelpers, needTypes, needLinks} {
		for _, n := range f(objs) {
			if n.Err != nil {
				missing.Needs = append(missing.Needs, n)
			}
		}
	}
	if len(missing.Needs) > 0 {
		return missing
	}
	return nil
}

func needPrivilege() Need {
	n := Need{Name: "privilege", Hint: "run it as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"}
	caps, err := effectiveCaps()
	switch {
	case err != nil:
		n.Err = err
	case caps.has(unix.CAP_SYS_ADMIN) && caps.has(unix.CAP_NET_ADMIN):
	case !caps.has(unix.CAP_BPF) || !caps.has(unix.CAP_NET_ADMIN) || !caps.has(unix.CAP_PERFMON):
		n.Err = ebpf.ErrNotSupported
	}
	return n
}

func needPrograms(*objects) []Need {
	return []Need{
		{"XDP programs", "4.8", "CONFIG_BPF_SYSCALL", missingOnly(features.HaveProgramType(ebpf.XDP))},
		{"XDP on frames larger than a page", "5.18", "", tryFrags()},
		{"sock_ops programs", "4.13", "CONFIG_CGROUP_BPF", missingOnly(features.HaveProgramType(ebpf.SockOps))},
		{"sk_reuseport programs", "4.19", "", missingOnly(features.HaveProgramType(ebpf.SkReuseport))},
	}
}

// needMaps asks for the types and flags that the programs' maps have.
func needMaps(objs *objects) []Need {
	since := map[ebpf.MapType]string{ebpf.Array: "3.19", ebpf.Hash: "3.19", ebpf.PerCPUArray: "4.6", ebpf.LRUHash: "4.10", ebpf.RingBuf: "5.8", ebpf.ReusePortSockArray: "4.19"}
	seen := map[ebpf.MapType]bool{}
	var needs []Need
	for _, m := range objs.mapSpecs() {
		if !seen[m.Type] {
			seen[m.Type] = true
			needs = append(needs, Need{fmt.Sprintf("%s maps", m.Type), since[m.Type], "", missingOnly(features.HaveMapType(m.Type))})
		}
	}
	mmap := missingOnly(features.HaveMapFlag(features.BPF_F_MMAPABLE))
	return append(needs, Need{"maps shared with userspace by mmap", "5.5", "", mmap})
}

func needInstructions(*objects) []Need {
	return []Need{
		{"more than 4096 instructions", "5.2", "", missingOnly(features.HaveLargeInstructions())},
		{"bounded loops", "5.3", "", missingOnly(features.HaveBoundedLoops())},
		{"BPF instruction set v3", "5.12", "", missingOnly(features.HaveV3ISA())},
	}
}

// needHelpers asks for exactly the helpers that the programs call.
func needHelpers(objs *objects) []Need {
	since := map[asm.BuiltinFunc]string{
		asm.FnJiffies64: "5.5", asm.FnRingbufOutput: "5.8", asm.FnRingbufReserve: "5.8", asm.FnRingbufSubmit: "5.8",
		asm.FnXdpAdjustHead: "4.10", asm.FnXdpAdjustTail: "4.18", asm.FnKtimeGetNs: "4.1", asm.FnRedirect: "4.4",
		asm.FnKtimeGetCoarseNs: "5.11", asm.FnLoop: "5.17", asm.FnXdpGetBuffLen: "5.18", asm.FnXdpLoadBytes: "5.18", asm.FnSkcLookupTcp: "5.2",
		asm.FnSkcToTcpTimewaitSock: "5.9", asm.FnSkSelectReuseport: "4.19", asm.FnSkbLoadBytes: "4.5",
		asm.FnSockOpsCbFlagsSet: "4.16", asm.FnGetSmpProcessorId: "4.1", asm.FnGetPrandomU32: "4.1",
	}
	type call struct {
		t  ebpf.ProgramType
		fn asm.BuiltinFunc
	}
	seen := map[call]bool{}
	var needs []Need
	for _, spec := range objs.all() {
		for _, p := range spec.Programs {
			for _, ins := range p.Instructions {
				c := call{p.Type, asm.BuiltinFunc(ins.Constant)}
				if !ins.IsBuiltinCall() || seen[c] {
					continue
				}
				seen[c] = true
				needs = append(needs, Need{
					fmt.Sprintf("helper %s for %s programs", c.fn, c.t), since[c.fn], "",
					missingOnly(features.HaveProgramHelper(c.t, c.fn)),
				})
			}
		}
	}
	slices.SortFunc(needs, func(a, b Need) int { return strings.Compare(a.Name, b.Name) })
	return needs
}

// needTypes asks for what programs look members of the kernel's types up in.
func needTypes(*objects) []Need {
	_, err := btf.LoadKernelSpec()
	return []Need{{"the types of the kernel (/sys/kernel/btf/vmlinux)", "5.4", "CONFIG_DEBUG_INFO_BTF", err}}
}

// needLinks tells a kernel that knows the link types from one that does not by an attachment that
// both refuse: loopback has no native XDP (EOPNOTSUPP, not EINVAL), and /dev/null is no cgroup (EBADF).
func needLinks(*objects) []Need {
	return []Need{
		{"pinnable links for XDP", "5.9", "", tryLink(ebpf.XDP, ebpf.AttachXDP, 1, link.XDPDriverMode)},
		{"pinnable links for cgroups", "5.7", "CONFIG_CGROUP_BPF", tryLink(ebpf.SockOps, ebpf.AttachCGroupSockOps, -1, 0)},
	}
}

func tryLink(t ebpf.ProgramType, attach ebpf.AttachType, target int, flags link.XDPAttachFlags) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "berm_probe", Type: t, AttachType: attach, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer prog.Close()
	if target < 0 {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		target = int(null.Fd())
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: target, Program: prog, Attach: attach, Flags: uint32(flags)})
	switch {
	case err == nil:
		return l.Close()
	case errors.Is(err, ebpf.ErrNotSupported):
		return err
	case errors.Is(err, unix.EINVAL):
		return ebpf.ErrNotSupported
	}
	return nil
}

// tryFrags: kernels without them refuse the flag (BPF_F_XDP_HAS_FRAGS).
func tryFrags() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "berm_probe", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return nil // says nothing about frames
	}
	return prog.Close()
}

// missingOnly keeps what says for sure that a feature is not there. A probe that failed for another reason
// says nothing; then loading will tell.
func missingOnly(err error) error {
	if errors.Is(err, ebpf.ErrNotSupported) {
		return ebpf.ErrNotSupported
	}
	return nil
}

// capabilities is the thread's effective set, bit n for capability n.
type capabilities uint64

func (c capabilities) has(n uint) bool { return c>>n&1 == 1 }

func effectiveCaps() (capabilities, error) {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return capabilities(n), err
		}
	}
	return 0, errors.New("read own capabilities: no CapEff in /proc/thread-self/status")
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
