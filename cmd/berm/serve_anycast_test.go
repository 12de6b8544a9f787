package main

import (
	"context"
	"net/netip"
	"time"

	"github.com/bermedge/berm/userspace/control"
)

func (d *daemon) Anycast(context.Context) (control.Anycast, error) {
	return control.Anycast{
		AS: 64513, Phase: "prepended", Why: "an operator drains it", Since: time.Now().Add(-time.Minute), Command: "drain",
		Routes: []control.AnycastRoute{{Prefix: netip.MustParsePrefix("203.0.113.10/32"), NextHop: "self", Communities: []string{"64513:100", "65535:0"}, MED: 50, Prepend: 3}},
		Peers: []control.AnycastPeer{
			{Address: netip.MustParseAddr("192.0.2.1"), AS: 64512, State: "established", Up: true, Since: time.Now().Add(-time.Hour), BFD: &control.AnycastBFD{State: "up", Interval: 100}},
			{Address: netip.MustParseAddr("2001:db8::1"), AS: 64512, State: "active", Since: time.Now().Add(-time.Hour), Error: "hold timer expired"},
		},
	}, nil
}

func (d *daemon) OrderAnycast(_ context.Context, o control.AnycastOrder) (control.Anycast, error) {
	return control.Anycast{Phase: "prepended", Changed: []string{"announced before, prepended now: " + o.Command}}, nil
}
