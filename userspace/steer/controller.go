package steer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
)

// Controller keeps the kernel half steering as the configuration and the backends' health say.
type Controller struct {
	maps     *bermmaps.Set
	log      *slog.Logger
	resolver *Resolver

	applying sync.Mutex // one Apply or Close at a time

	mu       sync.Mutex
	backends map[string]*backend
	sets     map[string]*set
	orders   map[string]Says // of operators, by backend
	self     string
	draining bool
	beaten   time.Time // by Beat

	secondChance, deadman time.Duration
	newcomers             bool // some row's are noted

	stop  context.CancelFunc
	wg    sync.WaitGroup
	first *sync.WaitGroup // of the probers that have yet to learn something
}

// backend is what the controller knows about one.
type backend struct {
	id      uint32
	site    string // another one, where it is
	address netip.Addr
	via     bermmaps.Via
	port    uint16 // of GUE
	probe   Probe
	alive   bool
	up      bool      // its host is there, so that it may have flows even if its daemon is silent
	met     bool      // it has answered since this daemon knows it
	known   time.Time // since when this daemon does
	says    Says      // of itself
	since   time.Time // that it is, or is not
	why     string    // it is not
	hop     bermmaps.NextHop
	told    string // the last trouble with its next hop, told once
}

type set struct {
	id      uint32
	site    string // another one, whose edges they are
	members []Backend
	moved   []time.Time // of each row, the last change of owner
	burst   []time.Time // when the last burst of them began
	settled []uint16    // and who owned it before
	placed  []Member    // for whom places are
	places  []Place
}

// newSet is a set with the memory of the one before it, if that is the same.
func newSet(id uint32, members []Backend, before *set) *set {
	s := &set{id: id, members: members}
	if before != nil && before.id == id {
		s.moved, s.burst, s.settled = before.moved, before.burst, before.settled
		return s
	}
	s.moved = slices.Repeat([]time.Time{time.Now()}, bermmaps.RowCount) // before this daemon: when, nobody knows
	s.burst, s.settled = make([]time.Time, bermmaps.RowCount), make([]uint16, bermmaps.RowCount)
	return s
}

// New makes a controller that writes to these maps. Close it before them.
func New(m *bermmaps.Set, log *slog.Logger) (*Controller, error) {
	resolver, err := NewResolver()
	if err != nil {
		return nil, err
	}
	return &Controller{maps: m, log: log, resolver: resolver, stop: func() {}}, nil
}

// Close stops probing and resolving. What was written stays in force.
func (c *Controller) Close() {
	c.applying.Lock()
	defer c.applying.Unlock()
	c.stop()
	c.wg.Wait()
	c.resolver.Close()
}

// Apply makes the configuration take effect: this edge's identity, secrets, peers, backends, sets and
// rows. Backends and sets that are gone stay until Tidy, since VIPs may still name them. VIPs
// that name new sets are written after it. The returned key is for the Responder.
func (c *Controller) Apply(ctx context.Context, cfg Config) (key [32]byte, err error) {
	c.applying.Lock()
	defer c.applying.Unlock()
	if err := ctx.Err(); err != nil {
		return key, err
	}
	cfg.Probe.Protocol, cfg.Probe.Path = cmp.Or(cfg.Probe.Protocol, "udp"), cmp.Or(cfg.Probe.Path, "/")
	if err := cfg.Validate(); err != nil {
		return key, err
	}
	secret := ownSecret(c.maps.Config.Secrets())
	if cfg.SecretFile != "" {
		if secret, err = ReadSecret(cfg.SecretFile); err != nil {
			return key, err
		}
	}

	c.stop() // nobody moves rows meanwhile
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.start(secret.Probe) // with what was known before, if an error ends this
	if err := c.write(cfg, secret); err != nil {
		return key, err
	}
	return secret.Probe, nil
}

// write does Apply's work on the maps. Backends come before the rows that name them.
func (c *Controller) write(cfg Config, secret Secret) error {
	backends, err := c.putBackends(cfg)
	if err != nil {
		return err
	}
	sets := map[string]*set{}
	far := cfg.siteSets()
	for name, members := range cfg.all() {
		id, err := c.maps.Sets.Put(bermmaps.BackendSet{Name: name, Owner: bermmaps.OwnerFile})
		if err != nil {
			return err
		}
		sets[name] = newSet(id, members, c.sets[name])
		sets[name].site = far[name].site
	}
	if err := c.identify(cfg.Node, secret, backends); err != nil {
		return err
	}
	if err := c.maps.Carries.Put(cfg.Carry.limits()); err != nil {
		return fmt.Errorf("steer.carry: %w", err)
	}
	if err := c.nameServers(cfg, backends, sets); err != nil {
		return err
	}
	first := c.sets == nil
	c.backends, c.sets, c.self = backends, sets, cfg.Node.Name
	c.secondChance, c.deadman = cfg.SecondChance, cfg.Deadman
	for name := range backends {
		c.resolve(name)
	}
	err = c.writeRows()
	if first { // others may have had this edge's rows before it started
		err = errors.Join(err, c.wake())
	}
	return err
}

// putBackends writes the backends. One that is new counts as alive until probes say otherwise; of
// one that is known, the rows tell what the last probes said.
func (c *Controller) putBackends(cfg Config) (map[string]*backend, error) {
	owners, err := c.owners()
	if err != nil {
		return nil, err
	}
	known, err := c.maps.Backends.List()
	if err != nil {
		return nil, err
	}
	out := map[string]*backend{}
	far := cfg.siteSets()
	for set, members := range cfg.all() {
		site, region := far[set].site, cfg.Node.Region
		if site != "" {
			region = cfg.Sites[site].Region
		}
		for _, m := range members {
			if out[m.Name] != nil {
				continue
			}
			i := slices.IndexFunc(known, func(b bermmaps.Backend) bool {
				return b.Name == m.Name && b.Address == m.Address.Unmap() && b.Via == m.Via
			})
			id, err := c.maps.Backends.Put(bermmaps.Backend{
				Name: m.Name, Address: m.Address, Owner: bermmaps.OwnerFile, Via: m.Via, Port: m.guePort(),
				Remote: site != "", Region: cfg.region(region),
			})
			if err != nil {
				return nil, err
			}
			b := &backend{id: id, site: site, address: m.Address, alive: true, up: true, since: time.Now(), known: time.Now()}
			if i >= 0 {
				b.alive, b.hop = owners[uint16(id)] || !c.wasMember(m.Name) || m.Name == cfg.Node.Name, known[i].NextHop
			}
			if old := c.backends[m.Name]; old != nil && old.address == m.Address && old.via == m.Via {
				*b = *old
				b.id, b.site = id, site
			}
			b.via, b.port, b.probe = m.Via, m.guePort(), cfg.Probe
			if m.isServer() {
				b.probe = cfg.Probe.over(m.Probe)
			}
			out[m.Name] = b
		}
	}
	return out, nil
}

// owners are the backends that own a row.
func (c *Controller) owners() (map[uint16]bool, error) {
	list, err := c.maps.Sets.List()
	if err != nil {
		return nil, err
	}
	out := map[uint16]bool{}
	for _, s := range list {
		rows, err := c.maps.Rows.Read(s.ID)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out[r.Owner] = true
		}
	}
	return out, nil
}

// wasMember says whether this controller has given a backend no rows only because it is new here.
func (c *Controller) wasMember(name string) bool { return c.backends == nil || c.backends[name] != nil }

// identify tells the kernel half who this edge is, what it shares with its peers, and who they are.
func (c *Controller) identify(node Node, secret Secret, backends map[string]*backend) error {
	self := bermmaps.Self{Address4: node.Address4, Address6: node.Address6}
	peers := map[netip.Addr]uint32{}
	for name, b := range backends {
		switch {
		case b.via != bermmaps.ViaEdge: // nobody's tunnels come from there
		case name != node.Name:
			peers[b.address] = b.id
		case b.address.Unmap().Is4() && !self.Address4.IsValid():
			self.Backend, self.Address4 = b.id, b.address.Unmap()
		case b.address.Is6() && !self.Address6.IsValid():
			self.Backend, self.Address6 = b.id, b.address
		default:
			self.Backend = b.id
		}
	}
	if err := c.maps.Config.SetSecrets(secret.Maps); err != nil {
		return err
	}
	if err := c.maps.Peers.Replace(peers); err != nil {
		return err
	}
	return c.maps.Config.SetSelf(self)
}

// writeRows brings every set's rows in line with who is fit. The caller holds mu.
func (c *Controller) writeRows() error {
	var errs []error
	peers, noted := false, false
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		s := c.sets[name]
		old, err := c.maps.Rows.Read(s.id)
		if err != nil {
			return err
		}
		members := c.membersOf(s)
		fresh := Succeed(old, s.assign(members), c.pastOf(s))
		if s.site != "" && !slices.ContainsFunc(members, func(m Member) bool { return m.Fit }) {
			clear(fresh) // what nobody answers for there stays here
		}
		peers = peers || c.hasPeers(members)
		if err := c.maps.Rows.Write(s.id, fresh); err != nil {
			errs = append(errs, err)
			continue
		}
		s.note(old, fresh, time.Now())
		noted = noted || slices.ContainsFunc(fresh, func(r bermmaps.Row) bool { return r.Newcomers })
		if plan := Compare(old, fresh); plan.Moved > 0 {
			c.log.Info("rows moved", "set", name, "rows", plan.Moved, "of", bermmaps.RowCount, "owners", c.shares(s, plan))
		}
	}
	limit := c.deadman
	if !peers {
		limit = 0
	}
	if c.newcomers && !noted && errs == nil { // the next ones begin with an empty table
		errs = append(errs, c.maps.Newcomers.Forget(0))
	}
	c.newcomers = noted
	return errors.Join(append(errs, c.maps.Heart.SetLimit(limit))...)
}

// assign gives the rows to the members, and remembers how.
func (s *set) assign(members []Member) []Place {
	if s.places == nil || !slices.Equal(s.placed, members) {
		s.placed, s.places = members, Assign(members)
	}
	return s.places
}

// hasPeers says whether this edge has rows that another could serve.
func (c *Controller) hasPeers(members []Member) bool {
	self := slices.ContainsFunc(members, func(m Member) bool { return m.Name == c.self })
	return self && slices.ContainsFunc(members, func(m Member) bool { return m.Name != c.self && m.Fit })
}

// acquaintance is how long a backend that has never answered this daemon may have flows all the same.
const acquaintance = 10 * time.Second

// burst is how long changes of a row may come one after the other and count as one.
const burst = 10 * time.Second

// note remembers when rows moved, and who had them before that began.
func (s *set) note(old, fresh []bermmaps.Row, now time.Time) {
	for i := range fresh {
		if old[i].Owner == fresh[i].Owner {
			continue
		}
		s.moved[i] = now
		if now.Sub(s.burst[i]) >= burst {
			s.burst[i], s.settled[i] = now, old[i].Owner
		}
	}
}

// pastOf says how a set's rows are succeeded.
func (c *Controller) pastOf(s *set) Past {
	may, servers := map[uint16]bool{}, map[uint16]bool{}
	for name, b := range c.backends {
		servers[uint16(b.id)] = b.via != bermmaps.ViaEdge
		// Whose network has just come up hears nobody at first: that is no reason to reset others' flows.
		new := !b.met && time.Since(b.known) < acquaintance
		may[uint16(b.id)] = name == c.self || b.alive || b.up || new
	}
	var self uint16
	if b := c.backends[c.self]; b != nil {
		self = uint16(b.id)
	}
	now := time.Now()
	return Past{
		Self: self, Off: c.secondChance == 0,
		May:    func(id uint16) bool { return may[id] },
		Server: func(id uint16) bool { return servers[id] },
		Settled: func(row int) uint16 {
			if now.Sub(s.burst[row]) >= burst {
				return 0
			}
			return s.settled[row]
		},
		Old: func(row int) bool { return now.Sub(s.moved[row]) >= c.secondChance },
	}
}

func (c *Controller) membersOf(s *set) []Member {
	var members []Member
	for _, m := range s.members {
		members = append(members, c.memberOf(m))
	}
	return members
}

func (c *Controller) memberOf(m Backend) Member { return c.memberWith(m, c.saysOf(m.Name)) }

// memberWith is a backend's part with what is said of it. One that is not known is taken for fit.
func (c *Controller) memberWith(m Backend, says Says) Member {
	out := Member{Name: m.Name, Weight: cmp.Or(says.Weight, m.Weight, 1), Share: says.Share, Fit: !says.Draining}
	if b := c.backends[m.Name]; b != nil {
		out.ID, out.Fit = uint16(b.id), b.alive && out.Fit
	}
	return out
}

// saysOf is what a backend says of itself, or what an operator said here, which goes before it.
func (c *Controller) saysOf(name string) Says {
	said, ok := c.orders[name]
	if !ok && c.backends[name] != nil {
		said = c.backends[name].says
	}
	said.Draining = said.Draining || c.draining && name == c.self
	return said
}

// Own is what this edge says of itself.
func (c *Controller) Own() Says {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.saysOf(c.self)
}

func (c *Controller) shares(s *set, p Plan) string {
	var out string
	for _, m := range s.members {
		gap := p.Backends[uint16(c.backends[m.Name].id)]
		out += fmt.Sprintf("%s %d→%d ", m.Name, gap.Before, gap.After)
	}
	return out
}

// SetDraining gives this edge's rows to its peers, or takes them back. Flows that it has stay to their
// end, unless second chances are off: then they go with their rows.
func (c *Controller) SetDraining(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = on
	return c.writeRows()
}

// Relieved reports whether this edge, in each set where there are others, knows of one that takes its rows while it drains.
func (c *Controller) Relieved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sets {
		members := c.membersOf(s)
		self := slices.ContainsFunc(members, func(m Member) bool { return m.Name == c.self })
		if self && len(members) > 1 && !c.hasPeers(members) {
			return false
		}
	}
	return true
}

// Tidy removes the file's sets and backends that are not in it any more. Call it once the VIPs are as
// the file says: a set that a VIP still names stays, and its backends with it.
func (c *Controller) Tidy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	sets, err := c.maps.Sets.List()
	if err != nil {
		return err
	}
	var errs []error
	tell := func(err error) {
		if err != nil && !errors.Is(err, bermmaps.ErrInUse) {
			errs = append(errs, err)
		}
	}
	for _, s := range sets {
		if c.sets[s.Name] == nil && s.Owner == bermmaps.OwnerFile {
			tell(c.maps.Sets.Remove(s.Name))
		}
	}
	backends, err := c.maps.Backends.List()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, b := range backends {
		if c.backends[b.Name] == nil && b.Owner == bermmaps.OwnerFile {
			if err := c.maps.Backends.Remove(b.Name); err != nil {
				tell(err)
				continue
			}
			tell(c.maps.Newcomers.Forget(b.ID)) // another may get the number
		}
	}
	return errors.Join(errs...)
}
