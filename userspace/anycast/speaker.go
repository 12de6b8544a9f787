package anycast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"github.com/bermedge/berm/userspace/anycast/bfd"
	"github.com/bermedge/berm/userspace/clock"
)

// speaker is BGP and BFD with the peers of one configuration.
type speaker struct {
	cfg   Config
	clock clock.Clock
	log   *slog.Logger
	alive func() bool

	bgp    *server.BgpServer
	bfd    *bfd.Speaker
	routes []Route // announced

	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu    sync.Mutex
	peers map[netip.Addr]*peerNote
}

// peerNote is a peer as it runs, and what events told about it.
type peerNote struct {
	cfg      Peer
	password string // as its file had it

	up     bool
	since  time.Time // of up
	ups    uint64
	why    string // the last session ended
	parole *time.Timer
}

// timers of a session. A peer that was lost is called again at once: the router decides how long it
// refuses.
const (
	connectRetry = 2                // seconds; the least that GoBGP takes
	idleHold     = 1                // seconds after a session ended
	parole       = 60 * time.Second // before one that sent too many prefixes gets another session
)

// newSpeaker starts BGP and calls the peers.
func newSpeaker(cfg Config, clk clock.Clock, log *slog.Logger, alive func() bool) (_ *speaker, err error) {
	ctx, stop := context.WithCancel(context.Background())
	s := &speaker{cfg: cfg, clock: clk, log: log, alive: alive, stop: stop, peers: map[netip.Addr]*peerNote{}}
	s.bgp = server.NewBgpServer(server.LoggerOption(slog.New(quiet{log.Handler()}), &slog.LevelVar{}))
	s.tasks.Go(s.bgp.Serve)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	port := int32(cfg.Port)
	if port == 0 {
		port = -1 // call, and be not called
	}
	err = s.bgp.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: cfg.AS, RouterId: cfg.RouterID.String(), ListenPort: port}})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("anycast.port: TCP port %d is taken: another BGP speaker of this host has it", cfg.Port)
	}
	if err != nil {
		return nil, fmt.Errorf("start BGP: %w", err)
	}
	if err = s.refuse(ctx); err != nil {
		return nil, err
	}
	if err = s.bgp.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: s.peerEvent}, server.WatchPeer()); err != nil {
		return nil, fmt.Errorf("watch peers: %w", err)
	}
	for _, p := range cfg.Peers {
		if err = s.add(ctx, p); err != nil {
			return nil, err
		}
	}
	return s, s.watch(cfg.Peers)
}

// refuse makes sure that nothing is used but what this edge says itself, whatever peers send.
func (s *speaker) refuse(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	err := s.bgp.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own})
	if err == nil {
		err = s.bgp.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT,
			Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
		}})
	}
	if err != nil {
		return fmt.Errorf("refuse what peers send: %w", err)
	}
	return nil
}

// add starts to speak with a peer.
func (s *speaker) add(ctx context.Context, p Peer) error {
	password, err := p.password()
	if err != nil {
		return fmt.Errorf("peer %s: password_file: %w", p.Address, err)
	}
	s.mu.Lock()
	s.peers[p.Address] = &peerNote{cfg: p, password: password, since: s.clock.Now()}
	s.mu.Unlock()
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.AS, AuthPassword: password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(p.HoldTime / time.Second), KeepaliveInterval: max(1, uint64(p.HoldTime/time.Second)/3),
			ConnectRetry: connectRetry, IdleHoldTimeAfterReset: idleHold,
		}},
		Transport:       &api.Transport{RemotePort: uint32(p.Port)},
		GracefulRestart: &api.GracefulRestart{}, // off: a dead daemon's routes must go
	}
	if p.Local.IsValid() {
		peer.Transport.LocalAddress = p.Local.String()
	}
	if p.Multihop > 0 {
		peer.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)}
	}
	for _, f := range p.families() {
		family := &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
		if f == IPv6 {
			family.Afi = api.Family_AFI_IP6
		}
		peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{
			Config:       &api.AfiSafiConfig{Family: family, Enabled: true},
			PrefixLimits: &api.PrefixLimit{Family: family, MaxPrefixes: p.MaxPrefixes},
		})
	}
	if err := s.bgp.AddPeer(ctx, &api.AddPeerRequest{Peer: peer}); err != nil {
		return fmt.Errorf("peer %s: %w", p.Address, err)
	}
	return nil
}

func (s *speaker) remove(ctx context.Context, peer netip.Addr) error {
	s.mu.Lock()
	if n := s.peers[peer]; n != nil && n.parole != nil {
		n.parole.Stop()
	}
	delete(s.peers, peer)
	s.mu.Unlock()
	if err := s.bgp.DeletePeer(ctx, &api.DeletePeerRequest{Address: peer.String()}); err != nil {
		return fmt.Errorf("peer %s: %w", peer, err)
	}
	return nil
}

// sameRoot tells whether a configuration can be switched to without ending every session.
func (s *speaker) sameRoot(c Config) bool {
	return s.cfg.AS == c.AS && s.cfg.RouterID == c.RouterID && s.cfg.Port == c.Port
}

// apply switches to another configuration. Peers that did not change keep their sessions.
func (s *speaker) apply(ctx context.Context, c Config) error {
	for _, p := range s.changed(c) {
		if err := s.remove(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range c.Peers {
		s.mu.Lock()
		known := s.peers[p.Address] != nil
		s.mu.Unlock()
		if !known {
			if err := s.add(ctx, p); err != nil {
				return err
			}
		}
	}
	s.cfg = c
	return s.watch(c.Peers)
}

// changed lists peers that a configuration lacks, or has otherwise: a file may hold another password
// by now.
func (s *speaker) changed(c Config) (out []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, n := range s.peers {
		if !slices.ContainsFunc(c.Peers, func(p Peer) bool {
			password, err := p.password()
			return err == nil && password == n.password && reflect.DeepEqual(p, n.cfg)
		}) {
			out = append(out, a)
		}
	}
	return out
}

func neighbors(peers []Peer) (out []bfd.Neighbor) {
	for _, p := range peers {
		if p.BFD != nil {
			out = append(out, bfd.Neighbor{Address: p.Address, Local: p.Local, Timing: bfd.Timing(*p.BFD)})
		}
	}
	return out
}

// watch keeps BFD sessions with these peers.
func (s *speaker) watch(peers []Peer) (err error) {
	list := neighbors(peers)
	switch {
	case s.bfd != nil && len(list) > 0:
		return s.bfd.Set(list)
	case s.bfd != nil:
		err = s.bfd.Close() // others may have the port
		s.bfd = nil
	case len(list) > 0:
		s.bfd, err = bfd.Start(list, bfd.Options{Clock: s.clock, Log: s.log, Alive: s.alive, Changed: s.bfdEvent})
	}
	return err
}

// bfdEvent ends the BGP session with a peer that is no longer heard: what BGP would notice seconds
// later. A peer that says that its end is down has ended the session itself; and one that just came
// back begins with that, so that ending the new session would go on for ever.
func (s *speaker) bfdEvent(peer netip.Addr, from, to bfd.State, why bfd.Diag) {
	if to != bfd.Up && from != bfd.Up {
		return
	}
	s.log.Info("BFD", "peer", peer, "state", to.String())
	if to == bfd.Up || why != bfd.DiagExpired {
		return
	}
	s.tasks.Go(func() {
		err := s.bgp.ResetPeer(context.Background(), &api.ResetPeerRequest{Address: peer.String(), Communication: "BFD is down"})
		if err != nil {
			s.log.Debug("end the session of a peer that BFD lost", "peer", peer, "error", err)
		}
	})
}

// peerEvent notes what became of a session.
func (s *speaker) peerEvent(ev *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	if ev.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	peer := ev.Peer.State.NeighborAddress.Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.peers[peer]
	if n == nil {
		return
	}
	up := ev.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED
	if why := ended(ev); why != "" && !up {
		n.why = why
	}
	if ev.Peer.State.AdminState == api.PeerState_ADMIN_STATE_PFX_CT && n.parole == nil {
		n.why = "it sent more prefixes than max_prefixes"
		n.parole = time.AfterFunc(parole, func() { s.pardon(peer) })
	}
	if up == n.up {
		return
	}
	n.up, n.since = up, at
	if up {
		n.ups++
		s.log.Info("BGP session up", "peer", peer, "as", ev.Peer.State.PeerASN)
	} else {
		s.log.Warn("BGP session down", "peer", peer, "why", n.why)
	}
}

// ended says why a session ended, as far as GoBGP tells.
func ended(ev *apiutil.WatchEventMessage_PeerEvent) string {
	reason := strings.TrimPrefix(ev.Peer.State.DisconnectReason.String(), "DISCONNECT_REASON_")
	reason = strings.ToLower(strings.ReplaceAll(reason, "_", " "))
	if reason == "unspecified" {
		reason = ""
	}
	if m := ev.Peer.State.DisconnectMessage; m != "" && reason != "" {
		return reason + ": " + m
	}
	return reason
}

// pardon lets a peer that flooded us have another session.
func (s *speaker) pardon(peer netip.Addr) {
	s.mu.Lock()
	n := s.peers[peer]
	if n != nil {
		n.parole = nil
	}
	s.mu.Unlock()
	if n == nil {
		return
	}
	if err := s.bgp.EnablePeer(context.Background(), &api.EnablePeerRequest{Address: peer.String()}); err != nil {
		s.log.Debug("call a peer again", "peer", peer, "error", err)
	}
}

// announce makes routes what peers are told, and nothing else. What fails is tried again by the next
// call.
func (s *speaker) announce(routes []Route) error {
	var errs []error
	var now []Route
	for _, r := range s.routes {
		if slices.ContainsFunc(routes, func(n Route) bool { return n.Prefix == r.Prefix }) {
			continue
		}
		p, err := r.path(s.cfg.AS)
		if err == nil {
			err = s.bgp.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{p}})
		}
		if err != nil {
			errs, now = append(errs, fmt.Errorf("withdraw %s: %w", r.Prefix, err)), append(now, r)
		}
	}
	for _, r := range routes {
		if slices.ContainsFunc(s.routes, r.equal) {
			now = append(now, r)
			continue
		}
		p, err := r.path(s.cfg.AS)
		if err == nil {
			_, err = s.bgp.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{p}})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %s: %w", r.Prefix, err))
		} else {
			now = append(now, r)
		}
	}
	s.routes = now
	return errors.Join(errs...)
}

// established counts sessions that are up.
func (s *speaker) established() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.up {
			n++
		}
	}
	return n
}

// close ends every session.
func (s *speaker) close() error {
	var err error
	if s.bfd != nil {
		err = s.bfd.Close()
	}
	s.mu.Lock()
	for _, n := range s.peers {
		if n.parole != nil {
			n.parole.Stop()
		}
	}
	s.mu.Unlock()
	s.bgp.Stop() // tells the peers
	s.stop()
	s.tasks.Wait()
	return err
}

// quiet makes what GoBGP logs ours: of use when looking for a mistake, since what matters is told
// by events, and a peer that lies could fill a log.
type quiet struct{ slog.Handler }

// Enabled reports whether debugging is on.
func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle logs at the level of debugging.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level, r.Message = slog.LevelDebug, "gobgp: "+r.Message
	return q.Handler.Handle(ctx, r)
}

// WithAttrs keeps it quiet.
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }

// WithGroup keeps it quiet.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
