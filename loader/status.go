package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/bpf"
)

// State is the kernel half as Status finds it.
type State struct {
	Up          bool        `json:"up"`
	Kernel      string      `json:"kernel"`
	Contract    int         `json:"contract"`
	Pins        string      `json:"pins"`
	Group       string      `json:"group,omitempty"` // owner of the pins
	ObserveOnly bool        `json:"observe_only"`
	RateCells   int         `json:"rate_cells,omitempty"`
	Interfaces  []Interface `json:"interfaces"`
	SockOps     *SockOps    `json:"sock_ops,omitempty"`
	Programs    []Program   `json:"programs"`
	Maps        []Map       `json:"maps"`
	Memory      uint64      `json:"memory"`   // bytes of all maps
	Problems    []string    `json:"problems"` // what is missing or in the way, and what to do
}

// Interface is one pinned XDP link.
type Interface struct {
	Name     string `json:"name"`
	Index    int    `json:"index,omitempty"`
	Attached bool   `json:"attached"`
	Mode     string `json:"mode,omitempty"`
	Program  uint32 `json:"program,omitempty"` // id
	Egress   uint32 `json:"egress,omitempty"`  // id of the program for packets that leave
	Problem  string `json:"problem,omitempty"`
}

// SockOps is the link to the cgroup.
type SockOps struct {
	Attached bool   `json:"attached"`
	Cgroup   uint64 `json:"cgroup"` // id, the inode of its directory
	Program  uint32 `json:"program"`
}

// Map is a pinned map.
type Map struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Key     uint32 `json:"key_bytes"`
	Value   uint32 `json:"value_bytes"`
	Entries uint32 `json:"entries"`
	Memory  uint64 `json:"memory"`
}

// Status looks at what is pinned and attached, and says plainly what is missing. It changes nothing
// and takes no lock. The group's members may call it; links are shown to root alone.
func Status(_ context.Context, o Options) (*State, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("kernel status: %w", err)
	}
	o.fill()
	at := o.pinned()
	s := &State{
		Kernel: kernelRelease(), Contract: o.contract, Pins: at.dir,
		Interfaces: []Interface{}, Programs: []Program{}, Maps: []Map{}, Problems: []string{},
	}
	s.others(o.Pins, at)
	switch _, err := os.Stat(at.dir); {
	case errors.Is(err, fs.ErrNotExist):
		s.problem("%s is not there: %v", at.dir, ErrNotUp)
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("kernel status: %w (be root or in the group of the pins)", err)
	}
	s.Up = true
	objs, err := embedded()
	if err != nil {
		return nil, fmt.Errorf("kernel status: %w", err)
	}
	s.readGroup(at)
	s.readMaps(at, objs)
	s.readPrograms(at, objs)
	s.readLinks(at, o)
	return s, nil
}

func (s *State) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func (s *State) others(root string, at layout) {
	dirs, err := contracts(root)
	if err != nil {
		s.problem("%v", err)
	}
	for _, l := range dirs {
		if _, half := cutNew(l.dir); half {
			s.problem("%s was left by an interrupted start (berm kernel up sweeps it up)", l.dir)
		} else if l != at {
			s.problem("%s belongs to another version of Berm (berm kernel upgrade takes it over, down removes it)", l.dir)
		}
	}
}

func (s *State) readGroup(at layout) {
	var st unix.Stat_t
	if err := unix.Stat(at.dir, &st); err != nil {
		s.problem("%s: %v", at.dir, err)
		return
	}
	s.Group = strconv.Itoa(int(st.Gid))
	if g, err := user.LookupGroupId(s.Group); err == nil {
		s.Group = g.Name
	}
}

func (s *State) readMaps(at layout, objs *objects) {
	for name := range objs.mapSpecs() {
		m, err := ebpf.LoadPinnedMap(at.mapPin(name), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.problem("the pin of map %s was removed (berm kernel up restores it while a program is attached)", name)
			continue
		case err != nil:
			s.problem("map %s: %v", name, err)
			continue
		}
		d := Map{name, m.Type().String(), m.KeySize(), m.ValueSize(), m.MaxEntries(), mapMemory(m)}
		s.Maps = append(s.Maps, d)
		s.Memory += d.Memory
		switch name {
		case "berm_rate_cells":
			s.RateCells = int(m.MaxEntries()) * rateWays
		case "berm_config":
			var cfg bpf.XDPBermConfig
			if err := m.Lookup(uint32(0), &cfg); err != nil {
				s.problem("berm_config: %v", err)
			} else if int(cfg.Contract) != s.Contract {
				s.problem("berm_config says contract %d, the directory %d: somebody has overwritten it (try: berm kernel up)", cfg.Contract, s.Contract)
			}
			s.ObserveOnly = cfg.Flags&uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY) != 0
		}
		m.Close()
	}
	slices.SortFunc(s.Maps, func(a, b Map) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(s.Problems)
}

func (s *State) readPrograms(at layout, objs *objects) {
	names, err := objs.names()
	if err != nil {
		s.problem("%v", err)
	}
	for _, name := range names {
		p, err := ebpf.LoadPinnedProgram(at.program(name), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			s.problem("the pin of program %s was removed (try: berm kernel up)", name)
			continue
		case err != nil:
			s.problem("program %s: %v", name, err)
			continue
		}
		s.Programs = append(s.Programs, describeProgram(p))
		p.Close()
	}
	sortPrograms(s.Programs)
}

func (s *State) readLinks(at layout, o Options) {
	links, err := at.openLinks()
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			s.problem("interfaces are shown to root alone")
		} else {
			s.problem("%v", err)
		}
		return
	}
	for _, l := range links {
		switch {
		case l.info.Type == link.XDPType:
			s.Interfaces = append(s.Interfaces, s.readXDP(l))
		case l.info.Cgroup() != nil:
			s.SockOps = &SockOps{l.info.Cgroup().CgroupId != 0, l.info.Cgroup().CgroupId, uint32(l.info.Program)}
			if !s.SockOps.Attached {
				s.problem("sock_ops: the cgroup it was attached to was removed (try: berm kernel up)")
			}
			s.checkProgram("sock_ops", s.SockOps.Program)
		}
		l.link.Close()
	}
	if s.SockOps == nil && o.Cgroup != CgroupNone {
		s.problem("sock_ops is attached to no cgroup: paths of TCP connections are not measured")
	}
	if len(s.Interfaces) == 0 {
		s.problem("attached to no interface: no packet is seen")
	}
	for _, name := range o.Interfaces {
		if !slices.ContainsFunc(s.Interfaces, func(i Interface) bool { return i.Name == name }) {
			s.problem("interface %s is not attached (try: berm kernel up)", name)
		}
	}
}

func (s *State) readXDP(l pinnedLink) Interface {
	i := Interface{Name: l.ifname, Index: l.ifindex(), Program: uint32(l.info.Program)}
	on, err := xdpOn(i.Index)
	switch {
	case i.Index == 0:
		i.Problem = fmt.Sprintf("the device was removed (berm kernel up --interface %s attaches to its successor)", i.Name)
	case err != nil || on.program != i.Program:
		i.Problem = fmt.Sprintf("attached to device %d of another network namespace", i.Index)
		i.Attached = true
	default:
		i.Attached, i.Mode = true, on.mode
		if now, err := findByIndex(i.Index); err == nil && now != i.Name {
			i.Problem = fmt.Sprintf("the device is called %s now (berm kernel up with that name moves the link)", now)
		}
		s.readEgress(&i)
	}
	if i.Problem != "" {
		s.problem("interface %s: %s", i.Name, i.Problem)
	}
	s.checkProgram("interface "+i.Name, i.Program)
	return i
}

func (s *State) readEgress(i *Interface) {
	var err error
	switch i.Egress, err = egressOn(i.Index); {
	case err != nil:
		s.problem("interface %s: egress: %v", i.Name, err)
	case i.Egress == 0:
		s.problem("interface %s: nothing of Berm's is at egress: servers that run no Berm are probed at their own addresses, not through their tunnels (try: berm kernel up)", i.Name)
	}
	s.checkProgram("egress of "+i.Name, i.Egress)
}

// checkProgram tells of a link that runs another program than the pinned ones.
func (s *State) checkProgram(what string, id uint32) {
	known := slices.ContainsFunc(s.Programs, func(p Program) bool { return p.ID == id || p.ID == 0 })
	if id != 0 && len(s.Programs) == 4 && !known {
		s.problem("%s runs program %d, which is not the pinned one: an upgrade was interrupted (try: berm kernel upgrade)", what, id)
	}
}

func describeProgram(p *ebpf.Program) Program {
	info, err := p.Info()
	if err != nil {
		return Program{Name: p.String()}
	}
	d := Program{Name: info.Name, Tag: info.Tag}
	if id, ok := info.ID(); ok {
		d.ID = uint32(id)
	}
	if n, err := info.TranslatedSize(); err == nil {
		d.Instructions = n / 8
	}
	if n, ok := info.VerifiedInstructions(); ok {
		d.Verified = int(n)
	}
	if n, err := info.JitedSize(); err == nil {
		d.JITed = int(n)
	}
	if since, ok := info.LoadTime(); ok {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil {
			d.LoadedAt = time.Now().Add(since - time.Duration(now.Nano())).Truncate(time.Millisecond)
		}
	}
	return d
}

func sortPrograms(p []Program) {
	slices.SortFunc(p, func(a, b Program) int { return strings.Compare(a.Name, b.Name) })
}

// mapMemory is what the kernel says it uses, or what the entries take.
func mapMemory(m *ebpf.Map) uint64 {
	if info, err := m.Info(); err == nil {
		if n, ok := info.Memlock(); ok && n > 0 {
			return n
		}
	}
	return uint64(m.MaxEntries()) * uint64(m.KeySize()+m.ValueSize())
}
