package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Node is a host of the lab: a network namespace with a name.
type Node struct {
	Name string
	lab  *Lab
	ns   netns.NsHandle
	nl   *netlink.Handle
}

// AddNode makes a node with loopback up and no reverse path filter.
func (l *Lab) AddNode(name string) (_ *Node, err error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("node name %q: must match %s", name, validName)
	}
	full := nsPrefix + l.Name + "-" + name
	if err := createNamespace(full); err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", full, err)
	}
	n, err := openNode(l, full)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.nodes[name] = n
	l.mu.Unlock()
	if err := n.calm(); err != nil {
		return nil, err
	}
	return n, n.Up("lo")
}

// calm turns off what the kernel does by itself and a lab does not expect.
func (n *Node) calm() error {
	for _, kv := range [][2]string{
		// Replies leave by another way than requests came in: that is what direct return means.
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		// Addresses are ours alone: looking for duplicates delays neighbour discovery by a second.
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.dad_transmits", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
	} {
		if err := n.Sysctl(kv[0], kv[1]); err != nil {
			return fmt.Errorf("%s: %s: %w", n.Name, kv[0], err)
		}
	}
	return nil
}

// createNamespace leaves the calling goroutine's thread where it was, or lets it die.
func createNamespace(full string) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			errc <- err
			return
		}
		defer home.Close()
		made, err := netns.NewNamed(full)
		if err == nil {
			err = made.Close()
		}
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

func openNode(l *Lab, full string) (*Node, error) {
	ns, err := netns.GetFromPath(filepath.Join(netnsDir, full))
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", full, err)
	}
	nl, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink in %s: %w", full, err), ns.Close())
	}
	return &Node{Name: strings.TrimPrefix(full, nsPrefix+l.Name+"-"), lab: l, ns: ns, nl: nl}, nil
}

func (n *Node) close() {
	n.nl.Close()
	_ = n.ns.Close() // a descriptor of ours; nothing is lost
}

// NamespacePath is where the node's namespace can be entered by path (nsenter --net=…).
func (n *Node) NamespacePath() string {
	return filepath.Join(netnsDir, nsPrefix+n.lab.Name+"-"+n.Name)
}

// Do runs fn on a thread inside the node. Goroutines that fn starts are outside of it;
// sockets that fn opens stay inside.
func (n *Node) Do(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			errc <- err
			return
		}
		defer home.Close()
		if err := netns.Set(n.ns); err != nil {
			runtime.UnlockOSThread()
			errc <- fmt.Errorf("enter node %s: %w", n.Name, err)
			return
		}
		err = fn()
		// A thread that cannot go home stays locked and so dies with its goroutine.
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

// Dial connects from inside the node. The address must be numeric: resolving would leave it.
func (n *Node) Dial(ctx context.Context, d *net.Dialer, network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Command prepares a command; start it through Do, Run or Start.
// Other than with "ip netns exec", /sys stays as it is, and so bpffs stays visible.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// Run runs a command in the node to its end and returns its output, both streams together.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	cmd := n.Command(ctx, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Do(cmd.Start); err != nil {
		return "", fmt.Errorf("%s: start %s: %w", n.Name, args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(args, " "), err, lastLines(out.String(), 5))
	}
	return out.String(), nil
}

// Output runs a command in the node and returns only what it printed on standard output.
func (n *Node) Output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := n.Command(ctx, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", n.Name, args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return []byte(out.String()), fmt.Errorf("%s: %s: %w: %s", n.Name, strings.Join(args, " "), err, lastLines(errs.String(), 5))
	}
	return []byte(out.String()), nil
}

// Sysctl sets a kernel parameter of the node's network namespace.
func (n *Node) Sysctl(key, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	return n.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
