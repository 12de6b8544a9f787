package anycast

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/bermedge/berm/userspace/anycast/bfd"
)

// Status is what is announced, and to whom.
type Status struct {
	Enabled bool
	AS      uint32
	Phase   Phase
	Why     string
	Since   time.Time
	Command Command
	Routes  []Route
	Peers   []PeerStatus
	Changes map[Phase]uint64 // times that a phase began
	Ignored uint64           // BFD packets that were malformed, or no neighbour's
}

// PeerStatus is how the sessions with a router are.
type PeerStatus struct {
	Address  netip.Addr
	AS       uint32
	State    string // as in RFC 4271: idle … established
	Up       bool
	Since    time.Time // of Up, or its contrary
	Sessions uint64    // that came up
	Error    string    // why the last one ended
	HoldTime time.Duration
	Received uint64      // prefixes, none of which is used
	BFD      *bfd.Status // nil: not watched
}

// Status tells how everything is.
func (a *Announcer) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.decider.now
	st := Status{
		Enabled: a.speaker != nil, AS: a.cfg.AS, Phase: d.phase, Why: d.why, Since: d.since, Command: a.decider.command,
		Changes: map[Phase]uint64{},
	}
	for _, p := range Phases() {
		st.Changes[p] = a.changes[p]
	}
	if a.speaker == nil {
		return st
	}
	st.Routes = slices.Clone(a.speaker.routes)
	st.Peers = a.speaker.status()
	if a.speaker.bfd != nil {
		st.Ignored = a.speaker.bfd.Ignored()
	}
	return st
}

func (s *speaker) status() []PeerStatus {
	known := map[string]*api.Peer{}
	err := s.bgp.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) { known[p.Conf.NeighborAddress] = p })
	if err != nil {
		s.log.Debug("ask for the state of sessions", "error", err)
	}
	var watched []bfd.Status
	if s.bfd != nil {
		watched = s.bfd.Status()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []PeerStatus
	for _, c := range s.cfg.Peers {
		n := s.peers[c.Address]
		if n == nil {
			continue
		}
		p := PeerStatus{Address: c.Address, AS: c.AS, State: "idle", Up: n.up, Since: n.since, Sessions: n.ups, Error: n.why, HoldTime: c.HoldTime}
		if g := known[c.Address.String()]; g != nil && g.State != nil {
			p.State = strings.ToLower(strings.TrimPrefix(g.State.SessionState.String(), "SESSION_STATE_"))
			if t := g.Timers.GetState(); n.up && t.GetNegotiatedHoldTime() > 0 {
				p.HoldTime = time.Duration(t.GetNegotiatedHoldTime()) * time.Second
			}
			for _, f := range g.AfiSafis {
				p.Received += f.GetState().GetReceived()
			}
		}
		if i := slices.IndexFunc(watched, func(b bfd.Status) bool { return b.Neighbor == c.Address }); i >= 0 {
			p.BFD = &watched[i]
		}
		out = append(out, p)
	}
	return out
}
