package wan

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// Box is a node that other nodes' links lead through.
type Box struct {
	Node *rig.Node

	lab    *rig.Lab
	plan   Plan
	socket string
	proc   *rig.Proc
}

// AddBox makes the node.
func AddBox(lab *rig.Lab, name string, seed uint64) (*Box, error) {
	n, err := lab.AddNode(name)
	if err != nil {
		return nil, err
	}
	b := &Box{Node: n, lab: lab, plan: Plan{Seed: seed}, socket: lab.Path(name + ".sock")}
	// Its kernel has nothing to say on links that are not its own.
	for _, key := range []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"} {
		if err := n.Sysctl(key, "1"); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// Connect joins two nodes by a link through the box, which passes frames on once the box is started. Up is from a to z.
func (b *Box) Connect(ctx context.Context, name string, a, z rig.End, mtu int, both Both) error {
	l := Link{Name: name, Devs: [2]string{name + "-a", name + "-z"}, Both: both}
	if err := rig.Connect(ctx, a, rig.End{Node: b.Node, Dev: l.Devs[0]}, mtu); err != nil {
		return err
	}
	if err := rig.Connect(ctx, rig.End{Node: b.Node, Dev: l.Devs[1]}, z, mtu); err != nil {
		return err
	}
	b.plan.Links = append(b.plan.Links, l)
	return b.plan.Validate()
}

// Start starts a program that calls Act with the arguments that are added to its own.
func (b *Box) Start(ctx context.Context, program ...string) error {
	plan, err := json.Marshal(b.plan)
	if err != nil {
		return err
	}
	file, err := b.lab.WriteFile(filepath.Base(b.socket)+".json", 0o644, plan)
	if err != nil {
		return err
	}
	if b.proc, err = b.Node.Start(rig.Daemon{Name: "wan", Args: append(program, file, b.socket)}); err != nil {
		return err
	}
	err = rig.Until(ctx, 10*time.Second, "links of "+b.Node.Name, func() (bool, error) {
		if done, err := b.proc.Exited(); done {
			return false, fmt.Errorf("ended: %w: %s", err, b.proc.Tail(5))
		}
		_, err := b.States(ctx)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	// All of its threads: one that waits for a lock of the Go runtime waits for whoever holds it to get a CPU.
	return b.proc.Realtime(true)
}

// Act is what the program does that Start starts.
func Act(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments, want a plan's file and a socket", len(args))
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var plan Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("plan %s: %w", args[0], err)
	}
	return Serve(ctx, plan, args[1])
}

// Guide tells a person how to look at the links and to change them.
func (b *Box) Guide() string {
	return fmt.Sprintf("Links through %s: curl --unix-socket %s http://wan/; to change one, PUT its up and down at http://wan/NAME.\n", b.Node.Name, b.socket)
}

// States returns what each link is and has done.
func (b *Box) States(ctx context.Context) (map[string]State, error) {
	var all map[string]State
	text, err := b.ask(ctx, http.MethodGet, "", nil)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("links of %s: %w", b.Node.Name, err)
	}
	return all, nil
}

// Set changes a link; frames on their way keep their times.
func (b *Box) Set(ctx context.Context, name string, both Both) error {
	body, err := json.Marshal(both)
	if err != nil {
		return err
	}
	_, err = b.ask(ctx, http.MethodPut, name, body)
	return err
}

func (b *Box) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://wan/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("links of %s: %s: %s", b.Node.Name, resp.Status, strings.TrimSpace(string(text)))
	}
	return text, err
}
