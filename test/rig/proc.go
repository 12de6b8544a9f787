package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon says how to start a long-running program in a node.
type Daemon struct {
	Name string   // of the log file, after the node's
	Args []string // program and arguments
	Env  []string // added to this process's
	// UID and GID to run as, with only the capabilities in Caps; 0 keeps root and all.
	UID, GID uint32
	Caps     []uintptr
	Cgroup   string // directory of a cgroup v2 to be born into; "" = ours
	CPUs     []int  // to be pinned to; none = all
}

// Proc is a program that the lab started. It outlives this process unless it is killed.
type Proc struct {
	Name string
	Log  string // path of what it printed

	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// Start starts a daemon in the node; its output goes to <lab>/<node>-<name>.log.
func (n *Node) Start(d Daemon) (_ *Proc, err error) {
	p := &Proc{
		Name: n.Name + "/" + d.Name,
		Log:  n.lab.Path(n.Name + "-" + d.Name + ".log"),
		cmd:  exec.Command(d.Args[0], d.Args[1:]...),
		done: make(chan struct{}),
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close() // the child has its own
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), d.Env...)
	// Its own session: Ctrl-C on the lab must not reach it before the lab has taken it down in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, AmbientCaps: d.Caps}
	if d.UID != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: d.UID, Gid: d.GID}
	}
	if d.Cgroup != "" {
		cg, err := os.Open(d.Cgroup)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", p.Name, err)
		}
		defer cg.Close()
		p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(cg.Fd())
	}
	if err := n.Do(func() error { return startPinned(p.cmd, d.CPUs) }); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	n.lab.mu.Lock()
	n.lab.procs = append(n.lab.procs, p)
	n.lab.mu.Unlock()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// startPinned pins the calling thread for as long as the child needs to inherit it.
func startPinned(cmd *exec.Cmd, cpus []int) error {
	if len(cpus) == 0 {
		return cmd.Start()
	}
	var old unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, cpuSet(cpus)); err != nil {
		return fmt.Errorf("pin to CPUs %v: %w", cpus, err)
	}
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &old))
}

func cpuSet(cpus []int) *unix.CPUSet {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	return &set
}

// Pin moves all threads of a running program to these CPUs.
func (p *Proc) Pin(cpus ...int) error {
	return p.eachThread("pin", func(tid int) error { return unix.SchedSetaffinity(tid, cpuSet(cpus)) })
}

// Realtime makes all threads of a running program come before everything that is not realtime
// (SCHED_FIFO), or like others again. For measuring on a machine that has other work.
func (p *Proc) Realtime(on bool) error {
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr}
	if on {
		attr.Policy, attr.Priority = unix.SCHED_FIFO, 1
	}
	return p.eachThread("reschedule", func(tid int) error { return unix.SchedSetAttr(tid, attr, 0) })
}

func (p *Proc) eachThread(what string, do func(tid int) error) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, p.Name, err)
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := do(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%s %s: %w", what, p.Name, err)
		}
	}
	return nil
}

// PID is the process id.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Exited tells whether the program has ended, and how.
func (p *Proc) Exited() (bool, error) {
	select {
	case <-p.done:
		return true, p.err
	default:
		return false, nil
	}
}

// Signal sends a signal.
func (p *Proc) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Kill ends the program with SIGKILL and waits until it is gone.
func (p *Proc) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the program to end and reports how it did; after grace it is killed.
func (p *Proc) Stop(grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := p.Wait(ctx); ctx.Err() != nil {
		return errors.Join(fmt.Errorf("%s did not end within %s of SIGTERM", p.Name, grace), p.Kill())
	} else if err != nil {
		return fmt.Errorf("%s: %w: %s", p.Name, err, p.Tail(5))
	}
	return nil
}

// Wait waits for the program to end by itself.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Tail returns the last lines that the program printed.
func (p *Proc) Tail(lines int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(b), lines)
}

// Binary finds a program of ours: in dir when given, else beside this executable, else on PATH.
func Binary(dir, name string) (string, error) {
	if dir != "" {
		return existing(filepath.Join(dir, name))
	}
	if self, err := os.Executable(); err == nil {
		if p, err := existing(filepath.Join(filepath.Dir(self), name)); err == nil {
			return p, nil
		}
	}
	return exec.LookPath(name)
}

func existing(path string) (string, error) {
	_, err := os.Stat(path)
	return path, err
}
