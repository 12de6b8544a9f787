package steer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

var addr = netip.MustParseAddr

func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("%s: not within %s", what, limit)
		}
		time.Sleep(2 * time.Millisecond) // sleep: between polls
	}
	return time.Since(start)
}

// respond runs a responder on an address of the loopback interface.
func respond(t *testing.T, at string, key [32]byte) *Responder {
	t.Helper()
	conn, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	r := NewResponder(conn)
	r.SetKey(key)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func TestProbes(t *testing.T) {
	key := [32]byte{1}
	p := DefaultProbe()
	p.Port = freePort(t)
	at := netip.AddrPortFrom(addr("127.0.0.1"), p.Port).String()
	if _, err := p.ask(t.Context(), addr("127.0.0.1"), key); err == nil {
		t.Error("nobody is there, and the probe succeeds")
	}
	r := respond(t, at, key)
	if _, err := p.ask(t.Context(), addr("127.0.0.1"), key); err != nil {
		t.Error("udp:", err)
	}
	if _, err := p.ask(t.Context(), addr("127.0.0.1"), [32]byte{2}); err == nil {
		t.Error("a probe of another site was answered")
	}
	for _, want := range []Says{{Draining: true}, {Weight: 7}, {Share: 250, Draining: true}, {Weight: maxWeight}, {Share: whole}, {}} {
		r.Say(want)
		if got, err := p.ask(t.Context(), addr("127.0.0.1"), key); err != nil || got != want {
			t.Errorf("says %+v: got %+v, %v", want, got, err)
		}
	}

	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthy" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	p.Port = netip.MustParseAddrPort(web.Listener.Addr().String()).Port()
	for proto, paths := range map[string]map[string]bool{"http": {"/healthy": true, "/": false}, "tcp": {"": true}} {
		for path, want := range paths {
			p.Protocol, p.Path = proto, path
			if _, err := p.ask(t.Context(), addr("127.0.0.1"), key); (err == nil) != want {
				t.Errorf("%s %s: %v", proto, path, err)
			}
		}
	}
	web.Close()
	p.Protocol = "tcp"
	if _, err := p.ask(t.Context(), addr("127.0.0.1"), key); err == nil {
		t.Error("tcp to a closed port succeeds")
	}
}

// A host that refuses is there; one that cannot be reached is not.
func TestHostUp(t *testing.T) {
	p := DefaultProbe()
	p.Port, p.Timeout = freePort(t), 5*time.Second
	if !p.hostUp(t.Context(), addr("127.0.0.1"), errors.New("silent")) {
		t.Error("a host that refuses TCP")
	}
	if !p.hostUp(t.Context(), addr("240.0.0.1"), &net.OpError{Op: "read", Err: syscall.ECONNREFUSED}) {
		t.Error("a host that refuses UDP")
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(addr("127.0.0.1"), p.Port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if !p.hostUp(t.Context(), addr("127.0.0.1"), errors.New("silent")) {
		t.Error("a host that accepts")
	}
	inNamespace(t, []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
	p.Timeout = 100 * time.Millisecond
	for _, silent := range []string{"192.0.2.3", "198.51.100.1"} { // an address that no host has, one without a route
		if p.hostUp(t.Context(), addr(silent), errors.New("silent")) {
			t.Errorf("%s answered", silent)
		}
	}
}

// Nobody can have the responder send more than he sent, or to answer anything but a probe.
func TestResponderIgnoresOthers(t *testing.T) {
	key := [32]byte{1}
	port := freePort(t)
	at := netip.AddrPortFrom(addr("127.0.0.1"), port).String()
	respond(t, at, key)
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	nonce := make([]byte, nonceLen)
	good := message(key, kindAsk, nonce)
	bad := [][]byte{nil, good[:10], append(good[:messageLen:messageLen], 0), message(key, Says{}.kind(), nonce), message([32]byte{2}, kindAsk, nonce)}
	for _, m := range append(bad, good) {
		if _, err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || n != messageLen || string(buf[:kindLen]) != (Says{}).kind() {
		t.Fatalf("answer %q, %v", buf[:n], err)
	}
	if err := conn.SetReadDeadline(time.Now()); err != nil { // answers come in order: another would be there
		t.Fatal(err)
	}
	if n, err := conn.Read(buf); err == nil {
		t.Errorf("a second answer: %q", buf[:n])
	}
}

func TestHealthNeedsRuns(t *testing.T) {
	p := Probe{Failures: 3, Successes: 2}
	h := health{alive: true}
	states := ""
	for _, result := range "..x.xx.xxxx..x..." {
		h.note(result == '.', p)
		states += map[bool]string{true: "+", false: "-"}[h.alive]
	}
	if want := "+++++++++---+++++"; states != want {
		t.Errorf("states %s, want %s", states, want)
	}
}

// TestDetectionTime computes, with time as an argument, how long a death and a return go unnoticed.
func TestDetectionTime(t *testing.T) {
	p := DefaultProbe()
	for what, tt := range map[string]struct {
		refused bool
		died    time.Duration // after a probe
		within  time.Duration
	}{
		"silent":      {false, time.Millisecond, 650 * time.Millisecond},
		"closed port": {true, time.Millisecond, 400 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			start := time.Now()
			dead := func() bool { at := time.Since(start); return at >= time.Second+tt.died && at < 5*time.Second }
			ask := func(ctx context.Context) (Says, error) {
				if dead() && !tt.refused {
					time.Sleep(p.Timeout) // sleep: a timeout, in synctest's time
				}
				if dead() {
					return Says{}, errors.New("dead")
				}
				return Says{}, nil
			}
			var turned []time.Duration
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.watch(ctx, ask, true, func(r result) {
					if r.changed {
						turned = append(turned, time.Since(start))
					}
				})
			}()
			time.Sleep(10 * time.Second) // sleep: in synctest's time
			cancel()
			<-done
			if len(turned) != 2 || turned[0]-time.Second > tt.within || turned[1]-5*time.Second > 400*time.Millisecond {
				t.Errorf("%s: dead from 1 s to 5 s, noticed at %v", what, turned)
			}
			t.Log(what, turned)
		})
	}
}

func secretFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func site(t *testing.T, port uint16) Config {
	probe := DefaultProbe()
	probe.Port = port
	return Config{
		Node: Node{Name: "edge1"}, SecretFile: secretFile(t), Probe: probe, SecondChance: time.Hour, Deadman: DefaultDeadman,
		Sets: map[string][]Backend{"edges": {
			{Name: "edge1", Address: addr("127.0.0.1")}, {Name: "edge2", Address: addr("127.0.0.2")}, {Name: "edge3", Address: addr("127.0.0.3")},
		}},
	}
}

func rowsOf(t *testing.T, c *Controller) map[string]int {
	t.Helper()
	list, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, s := range list {
		out[s.Name] = s.Rows
	}
	return out
}

func newController(t *testing.T, k *mapstest.Kernel) *Controller {
	t.Helper()
	c, err := New(k.Set, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestControllerFollowsHealth(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	port := freePort(t)
	cfg := site(t, port)
	secret, err := ReadSecret(cfg.SecretFile)
	if err != nil {
		t.Fatal(err)
	}
	two := respond(t, netip.AddrPortFrom(addr("127.0.0.2"), port).String(), secret.Probe)
	respond(t, netip.AddrPortFrom(addr("127.0.0.3"), port).String(), secret.Probe)
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	c.Acquainted()
	if told, yet := two.Told(time.Now()); told != 0 || yet != 1 {
		t.Errorf("edge2 stops right after edge1 has started: told %d, yet %d", told, yet)
	}
	within(t, 30*time.Second, "both others answer", func() bool { return c.Peers() == 2 })
	third := maps.RowCount/3 - 500
	if got := rowsOf(t, c); got["edge1"] < third || got["edge2"] < third || got["edge3"] < third {
		t.Fatalf("rows %v", got)
	}
	if self := k.Config.Self(); self.Address4 != addr("127.0.0.1") || self.Backend == 0 {
		t.Errorf("self %+v", self)
	}
	if peers, err := k.Peers.List(); err != nil || len(peers) != 2 || peers[addr("127.0.0.2")] == 0 {
		t.Errorf("peers %v, %v", peers, err)
	}
	if got := k.Config.Secrets(); got != secret.Maps {
		t.Error("the secrets are not those of the file")
	}

	since := time.Now()
	two.Say(Says{Draining: true})
	if told, yet := two.Told(since); told != 0 || yet != 1 {
		t.Errorf("edge2 waits for edge1: told %d, yet %d", told, yet)
	}
	took := within(t, 30*time.Second, "edge1 acts on what edge2 said", func() bool { told, yet := two.Told(since); return told == 1 && yet == 0 })
	if n := rowsOf(t, c)["edge2"]; n != 0 {
		t.Errorf("edge2 may stop listening, and has %d rows", n)
	}
	t.Logf("edge2 may stop listening %s after it said that it drains", took)
	if told, yet := two.Told(time.Now().Add(time.Minute)); told != 0 || yet != 0 {
		t.Errorf("edge2 waits for who asks no more: told %d, yet %d", told, yet)
	}
	set, _ := k.Sets.List()
	edge2, _ := k.Backends.Get("edge2")
	rows, _ := k.Rows.Read(set[0].ID)
	previous := 0
	for _, r := range rows {
		if uint32(r.Second) == edge2.ID && r.Moved {
			previous++
		}
	}
	if previous < third {
		t.Errorf("edge2 is the previous owner of %d rows", previous)
	}

	// A restarted daemon does not give rows to one that was dead.
	c.Close()
	c = newController(t, k)
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, c); got["edge2"] != 0 {
		t.Errorf("rows after a restart: %v", got)
	}

	two.Say(Says{})
	within(t, 30*time.Second, "rows return", func() bool { return rowsOf(t, c)["edge2"] >= third })
	if err := c.SetDraining(true); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, c); got["edge1"] != 0 {
		t.Errorf("rows while this edge drains: %v", got)
	}
	within(t, 30*time.Second, "a sign of life", func() bool {
		b, err := k.Backends.Get("edge3")
		return err == nil && !b.Heartbeat.IsZero()
	})
}

// An edge that drains beside others that do not answer has nobody to give its rows to.
func TestRelieved(t *testing.T) {
	c := newController(t, mapstest.New(t))
	if !c.Relieved() {
		t.Error("an edge without rows has none to give")
	}
	if _, err := c.Apply(t.Context(), site(t, freePort(t))); err != nil {
		t.Fatal(err)
	}
	if !c.Relieved() {
		t.Error("edges of which nothing is known yet would not take rows")
	}
	within(t, 30*time.Second, "it is known that nobody else is there", func() bool { return !c.Relieved() })
	if n := c.Peers(); n != 0 {
		t.Errorf("%d edges answer, and there are none", n)
	}
}

func TestControllerReload(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	cfg := site(t, freePort(t))
	cfg.Probe.Failures = 1000 // nobody answers, and that is not to matter here
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	vip := maps.VIP{Name: "web", Address: addr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP, Backends: "edges"}
	if _, err := k.VIPs.Put(vip); err != nil {
		t.Fatal(err)
	}

	bad := cfg
	bad.SecretFile = filepath.Join(t.TempDir(), "none")
	if _, err := c.Apply(t.Context(), bad); err == nil {
		t.Error("a missing secret was accepted")
	}
	if got := rowsOf(t, c); len(got) != 3 {
		t.Errorf("after the refused reload: %v", got)
	}

	next := cfg
	next.Sets = map[string][]Backend{"others": cfg.Sets["edges"][:2]}
	if _, err := c.Apply(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := c.Tidy(); err != nil {
		t.Fatal(err)
	}
	if sets, _ := k.Sets.List(); len(sets) != 2 {
		t.Errorf("a set that a VIP names was removed: %v", sets)
	}
	if _, err := k.Backends.Get("edge3"); err != nil {
		t.Error("and its backend:", err)
	}
	if err := k.VIPs.Remove("web"); err != nil {
		t.Fatal(err)
	}
	if err := c.Tidy(); err != nil {
		t.Fatal(err)
	}
	sets, _ := k.Sets.List()
	if _, err := k.Backends.Get("edge3"); len(sets) != 1 || sets[0].Name != "others" || err == nil {
		t.Errorf("after the VIP is gone: %v, %v", sets, err)
	}
}

// A host alone keeps its secret over restarts, so that its flows keep their rows.
func TestOwnSecretStays(t *testing.T) {
	k := mapstest.New(t)
	if err := k.Config.SetSecrets(maps.Secrets{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := newController(t, k)
		before := k.Config.Secrets()
		if _, err := c.Apply(t.Context(), Config{Probe: DefaultProbe()}); err != nil {
			t.Fatal(err)
		}
		after := k.Config.Secrets()
		if after.Flow == [2]uint64{} || after.Tags[0] == 0 || before.Flow != [2]uint64{} && after != before {
			t.Errorf("secrets %x, then %x", before, after)
		}
		c.Close()
	}
}

func TestSecretForms(t *testing.T) {
	a, b := strings.Repeat("a", 32), strings.Repeat("b", 40)
	plain, err := parseSecret([]byte("# the site's\n" + a + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	steps := []string{"rows " + a + "\ntags " + a + "\ntags " + b, "rows " + a + "\ntags " + b + "\ntags " + a, "rows " + a + "\ntags " + b}
	for i, text := range steps {
		s, err := parseSecret([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if s.Maps.Flow != plain.Maps.Flow || s.Probe != plain.Probe {
			t.Errorf("step %d moves flows", i)
		}
		if i == 0 && s.Maps.Tags[0] != plain.Maps.Tags[0] || i == 1 && s.Maps.Tags[1] != plain.Maps.Tags[0] {
			t.Errorf("step %d: tags %x of %x", i, s.Maps.Tags, plain.Maps.Tags)
		}
	}
	for text, says := range map[string]string{
		"":                          "no secret of rows",
		"short":                     "line 1: the secret has 5 characters",
		a + "\n" + b:                "line 2: a plain secret must be the only line",
		"rows " + a:                 "0 secrets of tags",
		"tags " + a:                 "no secret of rows",
		"rows " + a + "\nrows " + b: "line 2: a second secret of rows",
		"keys " + a:                 `line 1: "keys"`,
		"rows " + a + strings.Repeat("\ntags "+b, 3): "3 secrets of tags",
	} {
		if _, err := parseSecret([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
	path := secretFile(t)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecret(path); err == nil || !strings.Contains(err.Error(), "chmod 640") {
		t.Errorf("a secret for everybody: %v", err)
	}
}

func TestValidate(t *testing.T) {
	c := Config{
		Node: Node{Name: "edge1", Address4: addr("::1"), Address6: addr("192.0.2.1")},
		Sets: map[string][]Backend{
			"a set": {},
			"edges": {{Name: "edge1", Address: addr("192.0.2.1")}, {Name: "edge1", Address: addr("192.0.2.2"), Weight: -1}, {Name: ""}},
		},
		Probe: Probe{Protocol: "icmp", Interval: time.Millisecond, Timeout: time.Second},
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"node.address4: ::1 is not", "node.address6: 192.0.2.1 is not", `backends.a set: name "a set"`, "backends.a set: has no backend",
		`backends.edges[1].name: "edge1" is in the set twice`, `backends.edges[1].address: backend "edge1" has address 192.0.2.1 elsewhere`,
		"backends.edges[1].weight: -1", "backends.edges[2].name: name is empty", "backends.edges[2].address", "steer.secret_file: is needed",
		`steer.probe.protocol: "icmp"`, "steer.probe.port", "steer.probe.interval: 1ms", "steer.probe.timeout: 1s", "steer.probe.failures", "steer.probe.successes",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %q:\n%v", want, err)
		}
	}
	if err := (Config{Probe: DefaultProbe()}).Validate(); err != nil {
		t.Error("the empty file:", err)
	}
}

func TestValidateServers(t *testing.T) {
	c := Config{
		Node: Node{Name: "edge1"}, Probe: DefaultProbe(),
		Sets: map[string][]Backend{"web": {
			{Name: "edge1", Address: addr("192.0.2.1"), Via: maps.ViaGUE},
			{Name: "edge2", Address: addr("192.0.2.2"), Probe: Probe{Protocol: "tcp"}},
			{Name: "a", Address: addr("192.0.2.3"), Via: maps.ViaL2},
			{Name: "b", Address: addr("192.0.2.4"), Via: maps.ViaIPIP, Port: 6080, Probe: Probe{Protocol: "http", Timeout: time.Hour}},
			{Name: "c", Address: addr("192.0.2.5"), Via: maps.ViaGUE, Probe: Probe{Protocol: "tcp", Port: 443}},
		}, "other": {{Name: "c", Address: addr("192.0.2.5"), Via: maps.ViaGUE, Port: 9, Probe: Probe{Protocol: "tcp", Port: 443}}}},
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"backends.web[0].via: edge1 is this node", "backends.web[1].probe: is for servers", "backends.web[2].probe.protocol: udp asks an edge's daemon",
		"backends.web[3].port: is for via: gue, and this one is ipip", "backends.web[3].probe.port: is missing", "backends.web[3].probe.timeout: 1h0m0s",
		`backends.web[4].via: backend "c" is reached or probed otherwise elsewhere`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("does not say %q:\n%v", want, err)
		}
	}
	// One edge and its servers share no secret with anybody.
	c.Sets = map[string][]Backend{"web": {
		{Name: "edge1", Address: addr("192.0.2.1")},
		{Name: "c", Address: addr("192.0.2.5"), Via: maps.ViaGUE, Probe: Probe{Protocol: "http", Port: 80}},
	}}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if p := c.Probe.over(c.Sets["web"][1].Probe); p.String() != "http 80/" || p.Interval != DefaultProbe().Interval {
		t.Errorf("probe %s every %s", p, p.Interval)
	}
	if p := c.Sets["web"][1].guePort(); p != DefaultGUEPort {
		t.Errorf("GUE port %d", p)
	}
}

// A server is probed at its own address; it is no peer, and flows that it had are forgotten with it.
func TestControllerServers(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	var sick atomic.Bool
	hosts := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	ear, err := net.ListenPacket("udp", "127.0.0.3:6080")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case hosts <- r.Host:
		default:
		}
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	cfg := site(t, freePort(t))
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	cfg.Sets = map[string][]Backend{"edges": {
		{Name: "edge1", Address: addr("127.0.0.1")},
		{Name: "server", Address: addr("127.0.0.3"), Via: maps.ViaGUE, Probe: Probe{Protocol: "http", Port: port, Path: "/health", Host: "www.example"}},
	}}
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	b, err := k.Backends.Get("server")
	if err != nil || b.Via != maps.ViaGUE || b.Port != DefaultGUEPort {
		t.Fatalf("%+v, %v", b, err)
	}
	if peers, err := k.Peers.List(); err != nil || len(peers) != 0 {
		t.Errorf("peers %v, %v: nobody's tunnels come from a server", peers, err)
	}
	within(t, 10*time.Second, "a probe", func() bool { return len(hosts) == 1 })
	if host := <-hosts; host != "www.example" {
		t.Errorf("asked for %s", host)
	}
	status := func() Status {
		all, err := c.Status()
		if err != nil {
			t.Fatal(err)
		}
		return all[slices.IndexFunc(all, func(s Status) bool { return s.Name == "server" })]
	}
	had := rowsOf(t, c)["server"]
	if s := status(); had == 0 || s.Via != maps.ViaGUE || s.Probe != fmt.Sprintf("http %d/health", port) || !s.Alive {
		t.Errorf("%+v", s)
	}

	// It says that it is ill, and is there: flows that it has stay.
	sick.Store(true)
	within(t, 10*time.Second, "its rows go", func() bool { return rowsOf(t, c)["server"] == 0 })
	if s := status(); s.Alive || !s.HostUp || !strings.Contains(s.Why, "503") {
		t.Errorf("%+v", s)
	}
	theirs := func(r maps.Row) bool { return r.Moved && uint32(r.Second) == b.ID }
	if n := rowsIn(t, k, theirs); n < had {
		t.Errorf("%d rows remember it, want at least %d", n, had)
	}
	// It is well again: what began meanwhile is this edge's, and newcomers are noted.
	sick.Store(false)
	noted := func(r maps.Row) bool { return r.Newcomers && uint32(r.Owner) == b.ID && uint32(r.Second) != b.ID }
	within(t, 10*time.Second, "its rows return", func() bool { return rowsIn(t, k, noted) == had })

	// Nobody takes GUE there any more.
	if err := ear.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "its rows go again", func() bool { return rowsOf(t, c)["server"] == 0 })
	if s := status(); !strings.Contains(s.Why, errTunnelRefused.Error()) {
		t.Errorf("%+v", s)
	}
	if ear, err = net.ListenPacket("udp", "127.0.0.3:6080"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ear.Close() })
	within(t, 10*time.Second, "its rows return again", func() bool { return rowsOf(t, c)["server"] == had })

	// Newcomers of a server that is gone are forgotten; those of others are not.
	for i, backend := range []uint64{uint64(b.ID), uint64(b.ID), 77} {
		if err := k.Maps["berm_newcomers"].Put(uint32(i), [8]uint64{3: uint64(i)<<40 | backend<<12}); err != nil {
			t.Fatal(err)
		}
	}
	if n := k.Newcomers.Count(); n != 3 {
		t.Fatalf("%d newcomers", n)
	}
	f := follower{c: c, name: "server", id: b.ID, up: true, hostUp: func(error) bool { return false }}
	f.follow(result{changed: true, err: errors.New("gone")})
	if n := k.Newcomers.Count(); n != 1 {
		t.Errorf("%d newcomers are left, want that of another server", n)
	}
}

// rowsIn counts rows of the first set that are as asked.
func rowsIn(t *testing.T, k *mapstest.Kernel, is func(maps.Row) bool) (n int) {
	t.Helper()
	sets, err := k.Sets.List()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := k.Rows.Read(sets[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if is(r) {
			n++
		}
	}
	return n
}

// A backend whose daemon is silent may have flows while its host is there, and none when that is gone.
func TestControllerForgetsTheGone(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	cfg := site(t, freePort(t))
	cfg.Probe.Interval, cfg.Probe.Timeout, cfg.Probe.Failures = time.Hour, time.Second, 100 // the test says what they show
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	edge2, err := k.Backends.Get("edge2")
	if err != nil {
		t.Fatal(err)
	}
	had := rowsOf(t, c)["edge2"]
	second := func(r maps.Row) bool { return r.Moved && uint32(r.Second) == edge2.ID }
	start := rowsIn(t, k, second) // of edge1's own, which may have been there before edge1 started
	up := false
	stranger := follower{c: c, name: "edge2", id: edge2.ID, up: true, hostUp: func(error) bool { return up }}
	stranger.follow(result{changed: true, err: errors.New("silent")})
	if got := rowsIn(t, k, second); got != start+had {
		t.Errorf("never heard, by a daemon that has just started: it is asked for %d rows of %d", got, start+had)
	}
	up = true
	f := follower{c: c, name: "edge2", id: edge2.ID, hostUp: func(error) bool { return up }}
	f.follow(result{alive: true, changed: true})
	if got := rowsOf(t, c)["edge2"]; got != had {
		t.Errorf("once heard, it has %d rows of %d", got, had)
	}
	f.follow(result{alive: true, err: errors.New("one lost")})
	if got := rowsOf(t, c)["edge2"]; got != had {
		t.Errorf("after one lost probe it has %d rows of %d", got, had)
	}
	f.follow(result{changed: true, err: errors.New("silent")})
	if got := rowsIn(t, k, second); got != start+had || rowsOf(t, c)["edge2"] != 0 {
		t.Errorf("silent, its host there: it is asked for %d rows of %d", got, start+had)
	}
	up, f.asked = false, time.Time{}
	f.follow(result{err: errors.New("silent")})
	if got := rowsIn(t, k, second); got != 0 {
		t.Errorf("its host gone: it is asked for %d rows", got)
	}
	f.follow(result{alive: true, changed: true})
	if got := rowsOf(t, c)["edge2"]; got != had {
		t.Errorf("after its return it has %d rows of %d", got, had)
	}
	if got := rowsIn(t, k, func(r maps.Row) bool { return uint32(r.Owner) == edge2.ID && r.Moved }); got != had {
		t.Errorf("of its %d rows %d say who had them meanwhile", had, got)
	}
}

// A daemon that was silent says of its rows that they may have been elsewhere.
func TestBeat(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	if err := c.Beat(); err != nil {
		t.Error("before a configuration:", err)
	}
	cfg := site(t, freePort(t))
	cfg.Probe.Interval, cfg.Probe.Failures = time.Hour, 100 // nobody is found dead
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := k.Heart.Limit(); got < DefaultDeadman || got > DefaultDeadman+20*time.Millisecond {
		t.Errorf("limit %s", got)
	}
	self := uint16(k.Config.Self().Backend)
	mine := func(r maps.Row) bool { return r.Owner == self }
	moved := func(r maps.Row) bool { return r.Owner == self && r.Moved && r.Second != 0 }
	if a, b := rowsIn(t, k, mine), rowsIn(t, k, moved); a == 0 || a != b {
		t.Errorf("at the start %d of %d rows may have been elsewhere", b, a)
	}
	settle := func() {
		t.Helper()
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.sets {
			for i := range s.moved {
				s.moved[i] = time.Now().Add(-2 * cfg.SecondChance)
			}
		}
		if err := c.writeRows(); err != nil {
			t.Fatal(err)
		}
	}
	settle()
	if n := rowsIn(t, k, moved); n != 0 {
		t.Errorf("long after the start: %d", n)
	}
	c.beaten = time.Now()
	if err := c.Beat(); err != nil || rowsIn(t, k, moved) != 0 {
		t.Errorf("after no pause: %d, %v", rowsIn(t, k, moved), err)
	}
	c.beaten = time.Now().Add(-missed)
	if err := c.Beat(); err != nil || rowsIn(t, k, moved) != rowsIn(t, k, mine) {
		t.Errorf("after a pause: %d, %v", rowsIn(t, k, moved), err)
	}

	alone := cfg
	alone.Sets = map[string][]Backend{"edges": cfg.Sets["edges"][:1]}
	if _, err := c.Apply(t.Context(), alone); err != nil {
		t.Fatal(err)
	}
	if got := k.Heart.Limit(); got != 0 {
		t.Errorf("without peers: %s", got)
	}
}

// What a daemon says of new flows that went elsewhere is true also of the time before it was there.
func TestBeatSays(t *testing.T) {
	k := mapstest.New(t)
	var said bytes.Buffer
	c, err := New(k.Set, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	cfg := site(t, freePort(t))
	cfg.Probe.Interval, cfg.Probe.Failures = time.Hour, 100 // nobody is found dead
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	beat := func(fired bool) string {
		t.Helper()
		if fired {
			heart, err := k.Maps["berm_heart"].LookupBytes(uint32(0))
			if err != nil {
				t.Fatal(err)
			}
			heart[16] = 1 // what the kernel half sets
			if err := k.Maps["berm_heart"].Put(uint32(0), heart); err != nil {
				t.Fatal(err)
			}
		}
		said.Reset()
		if err := c.Beat(); err != nil {
			t.Fatal(err)
		}
		if k.Heart.Fired() {
			t.Error("it is not forgotten")
		}
		return said.String()
	}
	if got := beat(true); !strings.Contains(got, "until this daemon served") || strings.Contains(got, "pause") {
		t.Errorf("at the start: %q", got)
	}
	if got := beat(false); got != "" {
		t.Errorf("afterwards: %q", got)
	}
	c.beaten = time.Now().Add(-3 * time.Second)
	if got := beat(true); !strings.Contains(got, "was silent") || !strings.Contains(got, "pause=3") {
		t.Errorf("after 3 s: %q", got)
	}
}

func ptr[T any](v T) *T { return &v }

func TestOrdersAndPlans(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	cfg := site(t, freePort(t))
	cfg.Probe.Interval, cfg.Probe.Failures = time.Hour, 100 // nobody is found dead
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	before := rowsOf(t, c)
	for name, o := range map[string]Order{
		"unknown": {Backend: "edge9", Draining: ptr(true)}, "weight": {Backend: "edge2", Weight: ptr(maxWeight + 1)},
		"below": {Backend: "edge2", Weight: ptr(-1)}, "share": {Backend: "edge2", Share: ptr(whole + 1)},
	} {
		if _, err := c.Order(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := c.Plan(Change{Orders: []Order{o}}); err == nil {
			t.Errorf("%s: planned", name)
		}
	}
	for _, o := range []Order{
		{Backend: "edge1", Draining: ptr(true)},
		{Backend: "edge1", Draining: ptr(false)},
		{Backend: "edge3", Weight: ptr(3)},
		{Backend: "edge3", Weight: ptr(0)},
		{Backend: "edge2", Share: ptr(100)},
		{Backend: "edge2", Share: ptr(0)},
	} {
		plans, err := c.Plan(Change{Orders: []Order{o}})
		if err != nil || len(plans) != 1 {
			t.Fatalf("%+v: %+v, %v", o, plans, err)
		}
		if self, err := c.Order(o); err != nil || self != (o.Backend == "edge1") {
			t.Fatalf("%+v: %v, %v", o, self, err)
		}
		if self := c.Own(); o.Draining != nil && self.Draining != *o.Draining {
			t.Errorf("%+v: says %+v", o, self)
		}
		p, after := plans[0], rowsOf(t, c)
		t.Logf("%+v: %+v", o, p)
		for _, b := range p.Backends {
			if b.Before != before[b.Name] || b.After != after[b.Name] {
				t.Errorf("%s: planned %+v, came %d → %d", o.Backend, b, before[b.Name], after[b.Name])
			}
		}
		if p.Moved == 0 || p.Moved-p.Least > maps.RowCount*15/1000 && o.Share == nil {
			t.Errorf("%+v: moves %d rows, any change moves %d", o, p.Moved, p.Least)
		}
		before = after
	}
	plans, err := c.Plan(Change{Remove: []string{"edge2"}})
	if err != nil || plans[0].Moved != before["edge2"] || plans[0].Least != plans[0].Moved {
		t.Errorf("removal: %+v, %v", plans, err)
	}
	plans, err = c.Plan(Change{Add: []Backend{{Name: "edge4"}}})
	if err != nil || plans[0].Least != plans[0].Moved || len(plans[0].Backends) != 4 {
		t.Errorf("addition: %+v, %v", plans, err)
	}
	plans, err = c.Plan(Change{Sets: map[string][]Backend{"edges": cfg.Sets["edges"][:2], "more": cfg.Sets["edges"][1:]}})
	if err != nil || len(plans) != 2 || plans[0].Moved != before["edge3"] || plans[1].Moved != maps.RowCount {
		t.Errorf("a file: %+v, %v", plans, err)
	}
	if _, err := c.Plan(Change{Remove: []string{"edge9"}}); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("removal of one who is not there: %v", err)
	}
	if got := rowsOf(t, c); got["edge1"] != before["edge1"] {
		t.Error("a plan changed rows")
	}
}

func TestSteerConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"steer.second_chance": func(c *Config) { c.SecondChance = -1 },
		"steer.deadman: 10ms": func(c *Config) { c.Deadman = 10 * time.Millisecond },
		"steer.deadman: 1h":   func(c *Config) { c.Deadman = time.Hour },
	} {
		cfg := site(t, 9)
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := site(t, 9)
	cfg.SecondChance, cfg.Deadman = 0, 0
	if err := cfg.Validate(); err != nil {
		t.Error("both off:", err)
	}
}
