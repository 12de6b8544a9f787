// Package loader puts the kernel half in place and takes it away again: it probes the kernel,
// loads, tests, attaches and pins the programs, upgrades them under their links, and removes them.
// It alone needs privilege (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON; CAP_SYS_ADMIN to mount bpffs), and
// nothing of it keeps running: links, programs and maps live in their pins.
//
// Every function acts in the network and mount namespace of the calling thread and stays on it: a
// caller that changed namespaces must have locked its goroutine to the thread (runtime.LockOSThread).
package loader

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on.
var (
	// ErrInUse: another XDP program holds the interface.
	ErrInUse = errors.New("another XDP program is attached")
	// ErrNotUp: the pins are not there.
	ErrNotUp = errors.New("kernel half is not up (try: berm kernel up)")
	// ErrContract: pins of another contract are there, whose maps this version cannot use.
	ErrContract = errors.New("another version's kernel half is up")
	// ErrNoInterface: no such interface in this network namespace.
	ErrNoInterface = errors.New("no such interface in this network namespace (see: ip link)")
	// ErrLocked: another loader is at work.
	ErrLocked = errors.New("another loader is at work")
	// ErrSelfTest: a program that the verifier took gave a wrong answer to a known packet.
	ErrSelfTest = errors.New("self-test failed")
	// ErrRolledBack: the new program did wrong by live packets, and the old one is back.
	ErrRolledBack = errors.New("rolled back")
)

// Report says what Up or Upgrade found, did and left as it was.
type Report struct {
	Kernel     string       `json:"kernel"`
	Pins       string       `json:"pins"` // the contract's directory
	AlreadyUp  bool         `json:"already_up"`
	Interfaces []Attachment `json:"interfaces"`
	Cgroup     string       `json:"cgroup,omitempty"` // where sock_ops is attached
	Programs   []Program    `json:"programs"`
	Before     []Program    `json:"before,omitempty"` // what an upgrade replaced
	TickHz     int          `json:"tick_hz,omitempty"`
	Memory     uint64       `json:"memory"`  // bytes of maps
	Changed    []string     `json:"changed"` // one sentence for each change
	Notes      []string     `json:"notes"`   // what an operator should know
}

// Attachment is one interface with the program on it.
type Attachment struct {
	Name  string `json:"name"`
	Index int    `json:"index"`
	Mode  string `json:"mode"`          // native or generic
	Why   string `json:"why,omitempty"` // why not native
	New   bool   `json:"new"`           // attached by this call
}

// Program is a loaded program.
type Program struct {
	Name         string    `json:"name"`
	ID           uint32    `json:"id"`
	Tag          string    `json:"tag"`                   // the kernel's hash of its instructions
	Instructions int       `json:"instructions"`          // after translation; 0 without privilege
	Verified     int       `json:"verified_instructions"` // that the verifier walked (5.16 and later)
	JITed        int       `json:"jited_bytes"`           // 0 without the JIT
	LoadedAt     time.Time `json:"loaded_at,omitzero"`
}

func (r *run) changed(format string, args ...any) {
	r.report.Changed = append(r.report.Changed, fmt.Sprintf(format, args...))
}

func (r *run) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// Up brings the kernel half up as o says, or, when it is up, puts back what is missing of it.
// Maps that are there keep their content. When it fails, all is as it was before.
func Up(ctx context.Context, o Options) (*Report, error) {
	r, err := begin(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("kernel up: %w", err)
	}
	if err := r.end(r.walk(ctx, upSteps)); err != nil {
		return nil, fmt.Errorf("kernel up: %w", err)
	}
	return r.report, nil
}

// Upgrade replaces the running programs by this version's under their links, on all interfaces or
// none, without a gap. Maps keep their content, which is carried over where the running version is of another
// contract; interfaces that are missing are left to Up. When the new programs do wrong by live packets,
// the old ones are back.
func Upgrade(ctx context.Context, o Options) (*Report, error) {
	r, err := begin(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("kernel upgrade: %w", err)
	}
	steps, err := r.way()
	if err == nil {
		err = r.walk(ctx, steps)
	}
	if err := r.end(err); err != nil {
		return nil, fmt.Errorf("kernel upgrade: %w", err)
	}
	return r.report, nil
}

// With brings the kernel half up, calls f and takes it down again, whatever f returns. What was up
// before stays up: then somebody else owns it. f may start a child with Unprivileged.
func With(ctx context.Context, o Options, f func(*Report) error) (err error) {
	rep, err := Up(ctx, o)
	if err != nil {
		return err
	}
	if !rep.AlreadyUp {
		defer func() {
			_, derr := Down(context.WithoutCancel(ctx), o)
			err = errors.Join(err, derr)
		}()
	}
	return f(rep)
}
