package edge

import (
	"errors"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/steer"
)

// spilling is an edge without a kernel half, whose service web spills 1 % to nyc.
func spilling(t *testing.T) *Edge {
	t.Helper()
	cfg := config.Default()
	cfg.Node = config.Node{Name: "edge1", Site: "fra"}
	cfg.VIPs = []config.VIP{
		{Name: "web", Protocol: maps.ProtocolTCP, Backends: "edges", Spill: steer.Spill{To: "nyc", BasisPoints: 100}},
		{Name: "dns", Protocol: maps.ProtocolUDP, Backends: "edges"},
	}
	there := map[string][]steer.Backend{"edges": {{Name: "x1"}}}
	cfg.Sites = map[string]steer.Site{"nyc": {Backends: there}, "ams": {Backends: there}}
	e := &Edge{}
	e.cfg.Store(&cfg)
	e.kernel = newKernelLink(e, &cfg)
	return e
}

func TestPlanSpill(t *testing.T) {
	for _, c := range []struct {
		ask   control.Spill
		after control.Spill
		moved int
		err   string
	}{
		{control.Spill{VIP: "web", To: "nyc", BasisPoints: 250}, control.Spill{VIP: "web", To: "nyc", BasisPoints: 250}, 150, ""},
		{control.Spill{VIP: "web", BasisPoints: 40}, control.Spill{VIP: "web", To: "nyc", BasisPoints: 40}, 60, ""},
		{control.Spill{VIP: "web", To: "ams", BasisPoints: 40}, control.Spill{VIP: "web", To: "ams", BasisPoints: 40}, 100, ""},
		{control.Spill{VIP: "web"}, control.Spill{VIP: "web"}, 100, ""},
		{control.Spill{VIP: "dns", To: "nyc", BasisPoints: 40}, control.Spill{}, 0, "only QUIC's flows have a beginning"},
		{control.Spill{VIP: "web", To: "par", BasisPoints: 40}, control.Spill{}, 0, `no site is called "par"`},
		{control.Spill{VIP: "web", To: "ams", BasisPoints: 10_001}, control.Spill{}, 0, "want 0 to 10000"},
		{control.Spill{VIP: "mail", To: "ams", BasisPoints: 1}, control.Spill{}, 0, `VIP "mail" is none of the file's`},
	} {
		plan, err := spilling(t).planSpill(c.ask)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v, want %q", c.ask, err, c.err)
			}
			continue
		}
		if err != nil || plan.After != c.after || plan.Moved != c.moved || plan.Before.BasisPoints != 100 {
			t.Errorf("%+v: %+v, %v", c.ask, plan, err)
		}
	}
}

// What operators said goes before the file; without a kernel half nothing is remembered.
func TestSpillInForce(t *testing.T) {
	e := spilling(t)
	if _, err := e.Spill(t.Context(), control.Spill{VIP: "web", To: "ams", BasisPoints: 250}); !errors.Is(err, errNotYet) || e.kernel.spills["web"] != (steer.Spill{}) {
		t.Errorf("without a kernel half: %v, %+v", err, e.kernel.spills)
	}
	if done, err := e.Spill(t.Context(), control.Spill{VIP: "web", BasisPoints: 100}); err != nil || len(done.Changed) != 0 {
		t.Errorf("as it is: %+v, %v", done, err)
	}
	e.kernel.spills = map[string]steer.Spill{"web": {To: "ams", BasisPoints: 250}}
	want := maps.Sites{Carry: "edges.nyc", Hops: 2, Spill: "edges.ams", SpillPoints: 250}
	if w := e.kernel.wanted(e.cfg.Load()); w.VIPs[0].Sites != want || w.VIPs[1].Sites != (maps.Sites{Carry: "edges.nyc", Hops: 2}) {
		t.Errorf("%+v, want %+v", w.VIPs[0].Sites, want)
	}
}
