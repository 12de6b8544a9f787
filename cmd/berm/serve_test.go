package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

// daemon is the admin API over the script's own maps, with the parts of bermd that are not
// the CLI's concern written down.
type daemon struct{ set *maps.Set }

func (d *daemon) Tables(use func(control.Tables) error) error {
	if d.set == nil {
		return &control.Error{Status: http.StatusServiceUnavailable, Message: "the kernel half is not up", Hint: "berm kernel up"}
	}
	return use(control.NewLocal(d.set, func(context.Context, []string) ([]string, error) {
		return nil, &control.Error{Message: "geo database none.mmdb: no such file", Hint: "check geo.databases"}
	}))
}

func (d *daemon) Status(ctx context.Context) (control.Status, error) {
	s := control.Status{
		Node: "edge1", Site: "lab", Version: "test", PID: os.Getpid(), Started: time.Now().Add(-time.Hour), Ready: d.set != nil,
		Config:    control.ConfigInfo{Path: "/etc/berm/berm.yaml", Loaded: time.Now().Add(-time.Minute), Error: "line 3"},
		Listeners: []control.Listener{{Protocols: []string{"h1", "h2"}, Address: "0.0.0.0:443", Network: "tcp"}},
		Backends: []control.Backend{
			{ID: 1, Set: "edges", Name: "edge1", Address: netip.MustParseAddr("10.0.0.1"), Self: true, Ready: true, Healthy: true, Rows: 40000},
			{ID: 2, Set: "edges", Name: "edge2", Address: netip.MustParseAddr("10.0.0.2"), Rows: 25537, Seen: 12},
		},
		Origins:      []control.Origin{{Origin: "demo", URL: "http://127.0.0.1:9000", Error: "connection refused", Failures: 3}},
		Cache:        control.Cache{Objects: 1, Bytes: 1 << 20, MaxBytes: 256 << 20, HitRatio: .5},
		Dictionaries: control.Dictionaries{Known: 2, Bytes: 3 << 20, MaxBytes: 64 << 20, Raw: 2 << 20, Wire: 2048, Results: map[string]uint64{"sent": 9}},

		QUIC:        control.QUICInfo{Datagrams: []uint64{1200, 1100}},
		Generations: []control.Generation{{Number: 8, PID: 43, Serves: true}, {Number: 7, PID: 42}},
	}
	if d.set == nil {
		s.Problems = []string{"the kernel half is not up"}
		return s, nil
	}
	err := d.Tables(func(t control.Tables) (err error) {
		s.VIPs, err = t.VIPs(ctx)
		return err
	})
	s.Kernel = control.KernelInfo{Attached: true, VIPs: len(s.VIPs)}
	return s, err
}

func (d *daemon) Upgrade(context.Context) (control.Changes, error) {
	return control.Changes{Changed: []string{"process 43 serves now"}}, nil
}

func (d *daemon) Reload(context.Context) (control.Changes, error) {
	return control.Changes{}, &control.Error{Message: "/etc/berm/berm.yaml:3:5: vips[0].port: 70000 is not a port", Hint: "the old configuration stays in force"}
}

func (d *daemon) Purge(_ context.Context, p control.Purge) (control.Changes, error) {
	return control.Changes{Changed: []string{"forgot " + p.URL + " (2 variants)"}}, nil
}

func (d *daemon) Cache(context.Context) (control.Cache, error) { return control.Cache{}, nil }

func (d *daemon) LiveStreams(context.Context) ([]control.LiveStream, error) {
	return []control.LiveStream{{
		Name: "stage", Listen: netip.MustParseAddrPort("127.0.0.1:5004"), Host: "*", Path: "/live/stage", Packets: 9000, K: 20, M: 6, Joined: 3,
		Subscribers: []control.Subscriber{{
			Client: netip.MustParseAddrPort("198.51.100.7:4433"), Seconds: 61, Loss: 0.05, Burst: 1.1, Before: 0.02, K: 20, M: 6, Nacks: 2,
			Why: "enough", Sent: 6000, Parity: 1800, Missing: 1, Residual: 1. / 6000,
		}},
	}}, nil
}

func (d *daemon) Relays(context.Context) ([]control.Relay, error) {
	return []control.Relay{
		{Name: "before", Role: "protect", Packets: 1500, Parity: 300, Loss: 0.05, Burst: 1.2, K: 32, M: 8, Why: "enough"},
		{Name: "behind", Role: "repair", Packets: 1499, Senders: 1, Received: 1700, Repaired: 74, Missing: 1, Residual: 1. / 1500},
	}, nil
}

// Order answers with what it was asked.
func (d *daemon) Order(_ context.Context, o control.Order) (control.Changes, error) {
	b, err := json.Marshal(o)
	return control.Changes{Changed: []string{string(b)}}, err
}

// Spill answers with what it was asked.
func (d *daemon) Spill(_ context.Context, s control.Spill) (control.Changes, error) {
	b, err := json.Marshal(s)
	return control.Changes{Changed: []string{string(b)}}, err
}

// Plan answers with what it was asked.
func (d *daemon) Learning(context.Context) (control.Learning, error) {
	return control.Learning{Mode: "shadow", Said: true, Arms: []string{"learn-cubic", "learn-bbr"}, HoldOut: 0.05, Prefixes: 3, Chosen: map[string]int{"learn-bbr": 2}, Held: 1, Changes: 4}, nil
}

func (d *daemon) SetLearning(_ context.Context, o control.LearnOrder) (control.Changes, error) {
	return control.Changes{Changed: []string{"learner " + o.Mode}}, nil
}

func (d *daemon) Learned(_ context.Context, ip netip.Addr) (*control.Learned, error) {
	if !ip.Is4() {
		return nil, nil //nolint:nilnil // nothing is known
	}
	return &control.Learned{
		Prefix: netip.PrefixFrom(ip, 24).Masked(), Mode: "on", Profile: "learn-bbr", Learned: true, Why: "it does 900 % better", Since: time.Now().Add(-time.Hour), HoldOut: 0.05,
		Scores: []control.LearnedScore{
			{Profile: "learn-cubic", Connections: 11, Parts: 2, GoodputKbps: 1400, Queueing: 0.02, Retransmitted: 0.02, RewardKbps: 1369, Gain: -0.92, Paired: 2},
			{Profile: "learn-bbr", Connections: 190, QUIC: 40, Parts: 2, GoodputKbps: 18200, Queueing: 0.1, Retransmitted: 0.02, RewardKbps: 17654},
		},
	}, nil
}

func (d *daemon) Diagnose(_ context.Context, ip netip.Addr) (control.Diagnosis, error) {
	if !ip.Is4() {
		return control.Diagnosis{IP: ip, Segment: "unknown", Why: "nothing was seen"}, nil
	}
	return control.Diagnosis{IP: ip, Prefix: netip.PrefixFrom(ip, 24).Masked(), Segment: "origin", Why: "it waits", Network: 0.02, Queues: 0.001, Loss: 0.0125, Edge: 0.0004, Origin: 0.12, Connections: 3, Requests: 9, Fetched: 8}, nil
}

func (d *daemon) Plan(_ context.Context, p control.PlanRequest) (control.Plan, error) {
	b, err := json.Marshal(p)
	var spills []control.SpillPlan
	for _, s := range p.Spills {
		spills = append(spills, control.SpillPlan{VIP: s.VIP, Before: control.Spill{VIP: s.VIP, To: "nyc", BasisPoints: 100}, After: s, Moved: 250})
	}
	return control.Plan{Spills: spills, Sets: []control.SetPlan{{Set: string(b), Rows: 65537, Moved: 6600, Least: 6554, Backends: []control.BackendPlan{
		{Name: "edge1", Before: 65537, After: 58983}, {Name: "edge2", After: 6554},
	}}}}, err
}

func (d *daemon) Top(ctx context.Context, seconds int) (control.Top, error) {
	t := control.Top{Seconds: float64(seconds), Requests: 1234, Cache: control.Cache{Objects: 7, Bytes: 1 << 20, MaxBytes: 256 << 20, HitRatio: .875}}
	t.Sources = []control.TopSource{{Source: netip.MustParseAddr("198.51.100.7"), Country: "DE", Packets: 1500, Bytes: 90000, Dropped: 20, Reason: "geo"}}
	t.Sources = append(t.Sources, control.TopSource{Source: netip.MustParseAddr("198.51.100.9"), Packets: 3, Reason: "geo"}) // only counted
	t.VIPs = []control.TopVIP{{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: "tcp", In: control.Rate{Packets: 1500, Bytes: 90000}}}
	t.Drops = []control.TopDrop{{Reason: "geo", Dropped: control.Rate{Packets: 20, Bytes: 1200}}}
	return t, nil
}

// serve answers the admin API at BERM_SOCKET until unserve or the end of the script; over the
// maps at BERM_PINS if they are there.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: serve")
	}
	d := &daemon{}
	set, err := maps.Open(maps.PinDir(ts.Getenv("BERM_PINS")))
	if err == nil {
		d.set = set
	}
	_ = os.Remove(ts.Getenv("BERM_SOCKET"))
	l, err := net.Listen("unix", ts.Getenv("BERM_SOCKET"))
	ts.Check(err)
	srv := &http.Server{Handler: control.Handler(d)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	stop := func() {
		_ = srv.Close()
		<-done
		if d.set != nil {
			_ = d.set.Close()
			d.set = nil
		}
	}
	*ts.Value(stopKey{}).(*func()) = stop
	ts.Defer(stop)
}

// stopKey finds what unserve calls.
type stopKey struct{}

func unserve(ts *testscript.TestScript, _ bool, _ []string) {
	(*ts.Value(stopKey{}).(*func()))()
}
