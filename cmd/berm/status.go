package main

import (
	"errors"
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/control"
)

type statusCmd struct{}

// Help is what berm status --help adds.
func (statusCmd) Help() string {
	return `Exit code 0: the daemon runs and is ready. 1: it runs and is not ready; the problems are listed. 3: it does not run; what the kernel half does meanwhile is shown from its maps.

Examples:

  berm status
  berm status --json | jq -r '.problems[]'
  until berm status >/dev/null; do sleep 1; done`
}

// statusAnswer is berm status --json: the daemon's status, and whether there is one.
type statusAnswer struct {
	Running  bool     `json:"running"`
	Ready    bool     `json:"ready"`
	Problems []string `json:"problems"`
	*control.Status
	Maps *mapsStatus `json:"maps,omitempty"` // without a daemon: what the maps tell
}

// mapsStatus is the kernel half without a daemon.
type mapsStatus struct {
	Loaded bool          `json:"loaded"`
	Error  string        `json:"error,omitempty"`
	Pins   string        `json:"pins"`
	VIPs   []control.VIP `json:"vips"`
	Drops  control.Drops `json:"drops"`
}

func (c *statusCmd) Run(a *app) error {
	d, err := a.daemon()
	switch {
	case errors.Is(err, control.ErrDown):
		return c.down(a)
	case err != nil:
		return err
	}
	s, err := d.Status(a.ctx)
	if err != nil {
		return err
	}
	if !s.Ready {
		a.code = exitFailed
	}
	return a.out.Value(statusAnswer{Running: true, Ready: s.Ready, Problems: orEmpty(s.Problems), Status: &s}, func() { a.status(s) })
}

// down shows the kernel half alone.
func (c *statusCmd) down(a *app) error {
	a.code = exitAbsent
	st := &mapsStatus{Pins: a.settings().pins, VIPs: []control.VIP{}}
	if t, closer, err := a.openLocal(st.Pins); err != nil {
		st.Error = err.Error()
	} else {
		defer func() { _ = closer() }() // only read
		var errV, errD error
		st.VIPs, errV = t.VIPs(a.ctx)
		st.Drops, errD = t.Drops(a.ctx)
		if err := errors.Join(errV, errD); err != nil {
			return err
		}
		st.Loaded = true
	}
	st.Drops.Drops, st.Drops.Stages = orEmpty(st.Drops.Drops), orEmpty(st.Drops.Stages)
	problems := []string{"bermd is not running: nobody listens at " + a.settings().socket}
	if !st.Loaded {
		problems = append(problems, st.Error)
	}
	return a.out.Value(statusAnswer{Problems: problems, Maps: st}, func() {
		a.out.Field("daemon", "%s: nobody listens at %s (systemctl start bermd)", a.out.Paint(out.Bad, "not running"), a.settings().socket)
		if !st.Loaded {
			a.out.Field("kernel", "%s", a.out.Paint(out.Bad, st.Error))
			return
		}
		var dropped uint64
		for _, r := range st.Drops.Drops {
			dropped += r.Dropped.Packets
		}
		a.out.Field("kernel", "%s and filtering from %s: %s, %s packets dropped", a.out.Paint(out.Good, "loaded"), st.Pins, plural(len(st.VIPs), "VIP"), count(dropped))
		if len(st.VIPs) > 0 {
			a.out.Printf("\n")
			a.vips(st.VIPs)
		}
	})
}

func (a *app) status(s control.Status) {
	ready := a.out.Paint(out.Good, "ready")
	if !s.Ready {
		ready = a.out.Paint(out.Bad, "not ready")
	}
	name := s.Node
	if s.Site != "" {
		name += " in " + s.Site
	}
	a.out.Field("edge", "%s: %s", name, ready)
	for _, p := range s.Problems {
		a.out.Field("problem", "%s", a.out.Paint(out.Warn, p))
	}
	a.out.Field("daemon", "bermd %s, pid %d, up %s, %s requests, %d in flight", s.Version, s.PID, out.Duration(time.Since(s.Started)), count(s.Requests), s.InFlight)
	if len(s.Generations) > 1 {
		for _, g := range s.Generations {
			does := "ends what it began"
			if g.Serves {
				does = "serves"
			}
			a.out.Field("generation", "%d, pid %d: %s", g.Number, g.PID, does)
		}
	}
	a.out.Field("config", "%s, loaded %s ago", or(s.Config.Path, "built-in defaults"), out.Duration(time.Since(s.Config.Loaded)))
	if s.Config.Error != "" {
		a.out.Field("", "%s", a.out.Paint(out.Warn, "the last reload was refused: "+s.Config.Error))
	}
	a.kernelLine(s.Kernel)
	var listen []string
	for _, l := range s.Listeners {
		listen = append(listen, l.Address+"/"+l.Network+" ("+strings.Join(l.Protocols, ", ")+")")
	}
	a.out.Field("listen", "%s", or(strings.Join(listen, ", "), "nowhere"))
	a.out.Field("tls", "tcp %s, quic %s", handshakes(s.TLS.TCP), handshakes(s.TLS.QUIC))
	a.quicLine(s.QUIC)
	a.out.Field("geo", "%d prefixes, %d records, from %s", s.Geo.Prefixes, s.Geo.Records, or(strings.Join(s.Geo.Databases, ", "), "no database"))
	a.out.Field("cache", "%s, %s of %s, %.1f %% hits", plural(s.Cache.Objects, "object"), out.Bytes(float64(s.Cache.Bytes)), out.Bytes(float64(s.Cache.MaxBytes)), 100*s.Cache.HitRatio)
	if d := s.Dictionaries; d.MaxBytes > 0 {
		a.out.Field("deltas", "%s of %s in %s; dictionaries: %d, %s of %s", plural(int(d.Results["sent"]), "answer"), out.Bytes(float64(d.Raw)),
			out.Bytes(float64(d.Wire)), d.Known, out.Bytes(float64(d.Bytes)), out.Bytes(float64(d.MaxBytes)))
	}
	if len(s.VIPs) > 0 {
		a.out.Printf("\n")
		a.vips(s.VIPs)
	}
	a.backends(s.Backends)
	a.origins(s.Origins)
}

func (a *app) quicLine(q control.QUICInfo) {
	var counts []string
	for _, name := range sortedKeys(q.Controllers) {
		counts = append(counts, sprintf("%s %s", count(q.Controllers[name]), name))
	}
	line := or(strings.Join(counts, ", "), "none yet")
	if q.Refused > 0 {
		line += ", " + a.out.Paint(out.Warn, count(q.Refused)+" without all that their profile has")
	}
	if !q.Selectable {
		line += "; " + a.out.Paint(out.Warn, q.Why)
	}
	a.out.Field("quic", "connections by controller: %s", line)
	if len(q.Datagrams) > 1 {
		var read []string
		for _, n := range q.Datagrams {
			read = append(read, count(n))
		}
		a.out.Field("", "datagrams by worker: %s", strings.Join(read, ", "))
	}
}

func handshakes(h control.Handshakes) string {
	if h.Full+h.Resumed == 0 {
		return "no handshakes"
	}
	return sprintf("%s handshakes (%.0f %% resumed)", count(h.Full+h.Resumed), 100*float64(h.Resumed)/float64(h.Full+h.Resumed))
}

func (a *app) kernelLine(k control.KernelInfo) {
	if !k.Attached {
		a.out.Field("kernel", "%s: %s", a.out.Paint(out.Bad, "not loaded"), or(k.Error, "berm kernel up"))
		return
	}
	mode := ""
	if k.ObserveOnly {
		mode = a.out.Paint(out.Warn, " (observing only: nothing is dropped)")
	}
	a.out.Field("kernel", "loaded%s, %s, %s packets, %s dropped, %s shadowed, %s forwarded", mode, plural(k.VIPs, "VIP"),
		count(k.Packets), count(k.Dropped), count(k.Shadowed), count(k.Forwarded))
	if k.Carried+k.Spilled > 0 {
		a.out.Field("other sites", "%s packets carried there, %s of new flows spilled", count(k.Carried), count(k.Spilled))
	}
	a.out.Field("steering", "%s second chances, %s packets of new flows handed on; dead man's switch %s", count(k.Chances), count(k.Handed), or(k.Deadman, "off"))
}

func (a *app) backends(all []control.Backend) {
	if len(all) == 0 {
		return
	}
	rows := make([][]out.Cell, 0, len(all))
	for _, b := range all {
		state := out.Cell{Text: "healthy", Style: out.Good}
		switch {
		case !b.Healthy:
			state = out.Cell{Text: "silent", Style: out.Bad}
		case b.Draining:
			state = out.Cell{Text: "draining", Style: out.Warn}
		case b.Self:
			state = out.Cell{Text: "this edge", Style: out.Good}
		case !b.Ready:
			state = out.Cell{Text: "no next hop", Style: out.Bad}
		}
		seen := "never"
		if b.Seen >= 0 {
			seen = out.Duration(time.Duration(b.Seen*float64(time.Second))) + " ago"
		}
		if b.Self {
			seen = "-"
		}
		share := ""
		switch {
		case b.Share > 0:
			share = sprintf("canary %.2f %%", float64(b.Share)/100)
		case b.Weight > 0:
			share = sprintf("weight %d", b.Weight)
		}
		row := out.Row(b.Set, b.Name, b.Address.String(), b.Via.String(), "", sprintf("%d", b.Rows), sprintf("%d", b.Moved), seen, share)
		row[4] = state
		rows = append(rows, row)
	}
	a.out.Printf("\n")
	a.out.Table([]string{"SET", "BACKEND", "ADDRESS", "VIA", "STATE", "ROWS>", "MOVED>", "SEEN>", "ORDER"}, rows)
	for _, b := range all {
		if b.Direct != "" {
			a.out.Field("probes", "%s", a.out.Paint(out.Warn, sprintf("%s is asked at its own address, so a broken tunnel is not found: %s", b.Name, b.Direct)))
		}
	}
}

func (a *app) origins(all []control.Origin) {
	if len(all) == 0 {
		return
	}
	rows := make([][]out.Cell, 0, len(all))
	for _, o := range all {
		state := out.Cell{Text: "healthy", Style: out.Good}
		if !o.Healthy {
			state = out.Cell{Text: "failing", Style: out.Bad}
		}
		row := out.Row(o.Origin, o.URL, "", count(o.Requests), count(o.Failures), sprintf("%.1fms", o.Latency), o.Error)
		row[2] = state
		rows = append(rows, row)
	}
	a.out.Printf("\n")
	a.out.Table([]string{"ORIGIN", "URL", "STATE", "REQUESTS>", "FAILED>", "LATENCY>", "ERROR"}, rows)
}
