package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/bermedge/berm/loader"
)

type check struct {
	name  string
	run   func(context.Context) error
	after bool // makes sense only when all went well before
}

var checks = []check{
	{"probe", probe, false},
	{"verify", verify, false},
	{"packets", packets, false},
	{"connections", connections, false},
	{"up", up, false},
	{"up again", upAgain, true},
	{"upgrade", upgrade, true},
	{"down", down, true},
}

var opts = loader.Options{Interfaces: []string{"wan0", "wan1"}, Mode: loader.Native, Group: "0"}

func probe(context.Context) error { return loader.Probe() }

// verify prints one table line for each program; the test collects them over kernels.
func verify(context.Context) error {
	all, err := loader.Verify()
	if err != nil {
		return err
	}
	for _, v := range all {
		line, err := json.Marshal(v)
		if err != nil {
			return err
		}
		fmt.Println(tablePrefix + string(line))
	}
	return nil
}

func up(ctx context.Context) error {
	for _, name := range opts.Interfaces {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
			return fmt.Errorf("veth %s: %w", name, err)
		}
		for _, end := range []string{name, name + "p"} {
			l, err := netlink.LinkByName(end)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				return fmt.Errorf("interface %s: %w", end, err)
			}
		}
	}
	rep, err := loader.Up(ctx, opts)
	if err != nil {
		return err
	}
	fmt.Printf("    %d interfaces, tick %d Hz, maps %d MiB\n", len(rep.Interfaces), rep.TickHz, rep.Memory>>20)
	for _, line := range append(rep.Changed, rep.Notes...) {
		fmt.Println("   ", line)
	}
	return healthy(ctx)
}

func healthy(ctx context.Context) error {
	s, err := loader.Status(ctx, opts)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range s.Problems {
		errs = append(errs, errors.New(p))
	}
	for _, i := range s.Interfaces {
		if i.Mode != string(loader.Native) {
			errs = append(errs, fmt.Errorf("interface %s: mode %q, want native", i.Name, i.Mode))
		}
	}
	return errors.Join(errs...)
}

func upAgain(ctx context.Context) error {
	rep, err := loader.Up(ctx, opts)
	if err == nil && (!rep.AlreadyUp || len(rep.Changed) > 0) {
		err = fmt.Errorf("did something: %q", rep.Changed)
	}
	return err
}

func upgrade(ctx context.Context) error {
	rep, err := loader.Upgrade(ctx, opts)
	if err != nil {
		return err
	}
	if rep.Before[0].ID == rep.Programs[0].ID {
		return errors.New("the program was not replaced")
	}
	return healthy(ctx)
}

func down(ctx context.Context) error {
	gone, err := loader.Down(ctx, opts)
	if err != nil {
		return err
	}
	fmt.Printf("    %q\n", gone.Changed)
	s, err := loader.Status(ctx, opts)
	if err == nil && s.Up {
		err = errors.New("still up")
	}
	return err
}
