package rig_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
)

func TestMain(m *testing.M) {
	// A child that makes a lab and hangs, to be killed (TestSweepAfterKill).
	if name := os.Getenv("RIG_TEST_HANG"); name != "" {
		hang(name)
	}
	os.Exit(m.Run())
}

func pair(t *testing.T, l *rig.Lab) (a, b *rig.Node) {
	t.Helper()
	a, b = mustNode(t, l, "a"), mustNode(t, l, "b")
	err := rig.Connect(t.Context(),
		rig.End{Node: a, Dev: "eth0", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}},
		rig.End{Node: b, Dev: "eth0", Addrs: []string{"192.0.2.2/24", "2001:db8::2/64"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func mustNode(t *testing.T, l *rig.Lab, name string) *rig.Node {
	t.Helper()
	n, err := l.AddNode(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConnect(t *testing.T) {
	l := rigtest.New(t)
	a, b := pair(t, l)
	for _, addr := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		var ln net.Listener
		if err := b.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return err }); err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := ln.Accept(); err == nil {
				fmt.Fprint(c, "hello from ", addr)
				c.Close()
			}
		}()
		c, err := a.Dial(t.Context(), &net.Dialer{Timeout: 2 * time.Second}, "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello from "+addr {
			t.Errorf("read %q, %v", got, err)
		}
		c.Close()
		ln.Close()
	}
	got, err := b.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if got["Tcp.PassiveOpens"] != 2 {
		t.Errorf("PassiveOpens = %d, want 2", got["Tcp.PassiveOpens"])
	}
}

// The rule that AcceptXDP owns: without a program at the receiving end frames sent by XDP_TX
// are lost, with one every frame arrives.
func TestAcceptXDP(t *testing.T) {
	l := rigtest.New(t)
	a, b := pair(t, l)
	if err := rig.ReflectXDP(b, "eth0"); err != nil {
		t.Fatal(err)
	}
	const frames = 20
	if got := reflected(t, a, frames); got != 0 {
		t.Logf("this kernel delivers XDP_TX without a program at the peer (%d of %d)", got, frames)
	}
	if err := a.AcceptXDP("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := a.AcceptXDP("eth0"); err != nil {
		t.Fatal("a second time:", err)
	}
	if got := reflected(t, a, frames); got != frames {
		t.Errorf("%d of %d frames came back", got, frames)
	}
}

// reflected sends frames of an experimental EtherType and counts those that come back.
func reflected(t *testing.T, n *rig.Node, frames int) (got int) {
	t.Helper()
	const proto = 0x88b5 // IEEE 802 local experimental 1
	be := uint16(proto>>8 | proto&0xff<<8)
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(be))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Protocol: be, Ifindex: ifi.Index, Halen: 6}
		if err := unix.Bind(fd, to); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(300 * time.Millisecond))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return err
		}
		frame := append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5"), make([]byte, 50)...)
		for range frames {
			if err := unix.Sendto(fd, frame, 0, to); err != nil {
				return err
			}
		}
		for buf := make([]byte, 128); got < frames; {
			_, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				return nil
			} else if err != nil {
				return err
			}
			if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
				got++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDaemon(t *testing.T) {
	l := rigtest.New(t)
	n := mustNode(t, l, "a")
	cg, err := l.AddCgroup("a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Start(rig.Daemon{
		Name: "id", UID: 65534, GID: 65534, Cgroup: cg, CPUs: []int{0}, Caps: []uintptr{unix.CAP_NET_BIND_SERVICE},
		Args: []string{"sh", "-c", "id -u; grep -E 'CapEff|Cpus_allowed_list' /proc/self/status; grep ^0: /proc/self/cgroup; readlink /proc/self/ns/net"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	got := p.Tail(10)
	for _, want := range []string{"65534", "CapEff:\t0000000000000400", "Cpus_allowed_list:\t0", filepath.Base(cg)} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
	if strings.Contains(got, home) {
		t.Error("the daemon ran outside of its node")
	}
}

func TestPublish(t *testing.T) {
	l := rigtest.New(t)
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(closed, "hello")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho hello from $(id -u)\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restarted daemon publishes again
		path, err := l.Publish(program)
		if err != nil {
			t.Fatal(err)
		}
		p, err := mustNodeOnce(t, l, "a").Start(rig.Daemon{Name: "hello", Args: []string{path}, UID: 65534, GID: 65534})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(t.Context()); err != nil || p.Tail(1) != "hello from 65534" {
			t.Errorf("%v: %s", err, p.Tail(3))
		}
	}
}

func mustNodeOnce(t *testing.T, l *rig.Lab, name string) *rig.Node {
	t.Helper()
	if n := l.Node(name); n != nil {
		return n
	}
	return mustNode(t, l, name)
}

func TestCapture(t *testing.T) {
	l := rigtest.New(t, "tcpdump")
	a, b := pair(t, l)
	p, err := b.Capture("eth0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Dial(t.Context(), &net.Dialer{}, "udp", "192.0.2.2:9")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("needle in the capture")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	err = rig.Until(t.Context(), 5*time.Second, "packet in the file", func() (bool, error) {
		data, err := os.ReadFile(l.Path("b-eth0.pcap"))
		return strings.Contains(string(data), "needle in the capture"), err
	})
	if err != nil {
		t.Error(err)
	}
	if err := p.Stop(2 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestScheduling(t *testing.T) {
	l := rigtest.New(t)
	p, err := mustNode(t, l, "a").Start(rig.Daemon{Name: "sleep", Args: []string{"sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false} {
		want := map[bool]uint32{true: unix.SCHED_FIFO, false: unix.SCHED_NORMAL}[on]
		if err := p.Realtime(on); err != nil {
			t.Fatal(err)
		}
		got, err := unix.SchedGetAttr(p.PID(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got.Policy != want {
			t.Errorf("Realtime(%v): policy %d, want %d", on, got.Policy, want)
		}
	}
	if err := p.Pin(0); err != nil {
		t.Fatal(err)
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(p.PID(), &cpus); err != nil {
		t.Fatal(err)
	}
	if cpus.Count() != 1 || !cpus.IsSet(0) {
		t.Errorf("pinned to %d CPUs, want CPU 0 alone", cpus.Count())
	}
}

func TestStopReportsFailure(t *testing.T) {
	l := rigtest.New(t)
	n := mustNode(t, l, "a")
	p, err := n.Start(rig.Daemon{
		Name: "sh",
		Args: []string{"sh", "-c", `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.02; done`},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = rig.Until(t.Context(), 5*time.Second, "start", func() (bool, error) { return p.Tail(1) == "ready", nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(5 * time.Second); err == nil || !strings.Contains(err.Error(), "exit status 3: ready\nbye") {
		t.Errorf("Stop() = %v, want the exit status and what it said", err)
	}
}

func TestBPFMountsAreApart(t *testing.T) {
	l := rigtest.New(t)
	var dirs [2]string
	for i := range dirs {
		dir, err := l.MountBPF(fmt.Sprintf("pins%d", i))
		if err != nil {
			t.Fatal(err)
		}
		dirs[i] = dir
	}
	if err := os.Mkdir(filepath.Join(dirs[0], "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dirs[1], "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat in the other mount: %v", err)
	}
	n := mustNode(t, l, "a")
	if out, err := n.Run(t.Context(), "ls", "-d", dirs[0]+"/x"); err != nil {
		t.Errorf("from inside a node: %q, %v", out, err)
	}
}

func TestInUse(t *testing.T) {
	l := rigtest.New(t)
	if _, err := rig.New(l.Name); !errors.Is(err, rig.ErrInUse) {
		t.Errorf("a second lab of the same name: %v", err)
	}
	if err := rig.Sweep(l.Name); !errors.Is(err, rig.ErrInUse) {
		t.Errorf("sweep of a lab in use: %v", err)
	}
}

// hang makes a lab with one of everything and waits to be killed.
func hang(name string) {
	l, err := rig.New(name)
	if err != nil {
		panic(err)
	}
	n, err := l.AddNode("a")
	if err != nil {
		panic(err)
	}
	cg, err := l.AddCgroup("a")
	if err != nil {
		panic(err)
	}
	if _, err := l.MountBPF("pins"); err != nil {
		panic(err)
	}
	p, err := n.Start(rig.Daemon{Name: "sleep", Cgroup: cg, Args: []string{"sleep", "1000"}})
	if err != nil {
		panic(err)
	}
	fmt.Println(p.PID())
	select {}
}

func TestSweepAfterKill(t *testing.T) {
	rigtest.Require(t, rig.CheckPrivilege())
	name := fmt.Sprintf("k%d", os.Getpid())
	for round := range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "RIG_TEST_HANG="+name)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			t.Fatal("round", round, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if err := unix.Kill(pid, 0); err != nil {
			t.Fatal("its daemon did not survive, so nothing is shown:", err)
		}
		if round == 0 {
			continue // the next one must cope with the leftovers
		}
		if err := rig.Sweep(name); err != nil {
			t.Fatal(err)
		}
		assertGone(t, name, pid)
	}
}

func assertGone(t *testing.T, name string, pid int) {
	t.Helper()
	err := rig.Until(context.Background(), 5*time.Second, "daemon gone", func() (bool, error) {
		return errors.Is(unix.Kill(pid, 0), unix.ESRCH), nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/run/netns/*", "/run/bermlab/*", "/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if strings.Contains(f, name) {
				t.Error("left behind:", f)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/"+name+"/") {
		t.Error("a mount is left behind")
	}
	left, err := rig.Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(left, " "), name) {
		t.Error("leftovers:", left)
	}
}
