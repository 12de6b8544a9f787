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
	self     string
	draining bool

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// backend is what the controller knows about one.
type backend struct {
	id      uint32
	address netip.Addr
	alive   bool
	since   time.Time // that it is, or is not
	why     string    // it is not
	hop     bermmaps.NextHop
	told    string // the last trouble with its next hop, told once
}

type set struct {
	id      uint32
	members []Backend
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
	defer c.start(cfg.Probe, secret.Probe) // with what was known before, if an error ends this
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
	for name, members := range cfg.Sets {
		id, err := c.maps.Sets.Put(bermmaps.BackendSet{Name: name, Owner: bermmaps.OwnerFile})
		if err != nil {
			return err
		}
		sets[name] = &set{id: id, members: members}
	}
	if err := c.identify(cfg.Node, secret, backends); err != nil {
		return err
	}
	c.backends, c.sets, c.self = backends, sets, cfg.Node.Name
	for name := range backends {
		c.resolve(name)
	}
	return c.writeRows()
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
	for _, members := range cfg.Sets {
		for _, m := range members {
			if out[m.Name] != nil {
				continue
			}
			i := slices.IndexFunc(known, func(b bermmaps.Backend) bool { return b.Name == m.Name && b.Address == m.Address.Unmap() })
			id, err := c.maps.Backends.Put(bermmaps.Backend{Name: m.Name, Address: m.Address, Owner: bermmaps.OwnerFile})
			if err != nil {
				return nil, err
			}
			b := &backend{id: id, address: m.Address, alive: true, since: time.Now()}
			if i >= 0 {
				b.alive, b.hop = owners[uint16(id)] || !c.wasMember(m.Name) || m.Name == cfg.Node.Name, known[i].NextHop
			}
			if old := c.backends[m.Name]; old != nil && old.address == m.Address {
				*b = *old
				b.id = id
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

// writeRows brings every set's rows in line with who is alive. The caller holds mu.
func (c *Controller) writeRows() error {
	ids := map[uint16]bool{}
	for _, b := range c.backends {
		ids[uint16(b.id)] = true
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		s := c.sets[name]
		old, err := c.maps.Rows.Read(s.id)
		if err != nil {
			return err
		}
		fresh := Succeed(old, Owners(c.membersOf(s)), func(id uint16) bool { return !ids[id] })
		plan := Compare(old, fresh)
		if err := c.maps.Rows.Write(s.id, fresh); err != nil {
			errs = append(errs, err)
		} else if plan.Moved > 0 {
			c.log.Info("rows moved", "set", name, "rows", plan.Moved, "of", bermmaps.RowCount, "owners", c.shares(s, plan))
		}
	}
	return errors.Join(errs...)
}

func (c *Controller) membersOf(s *set) []Member {
	var members []Member
	for _, m := range s.members {
		b := c.backends[m.Name]
		members = append(members, Member{ID: uint16(b.id), Name: m.Name, Weight: cmp.Or(m.Weight, 1),
			Alive: b.alive && !(c.draining && m.Name == c.self)})
	}
	return members
}

func (c *Controller) shares(s *set, p Plan) string {
	var out string
	for _, m := range s.members {
		gap := p.Backends[uint16(c.backends[m.Name].id)]
		out += fmt.Sprintf("%s %d→%d ", m.Name, gap.Before, gap.After)
	}
	return out
}

// SetDraining gives this edge's rows to its peers, or takes them back. Flows that it has go with
// their rows, so this is for when they may.
func (c *Controller) SetDraining(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = on
	return c.writeRows()
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
			tell(c.maps.Backends.Remove(b.Name))
		}
	}
	return errors.Join(errs...)
}

// Status is what the controller knows about a backend.
type Status struct {
	Set     string           `json:"set"`
	Name    string           `json:"name"`
	Address netip.Addr       `json:"address"`
	Self    bool             `json:"self"`
	Alive   bool             `json:"alive"`
	Since   time.Time        `json:"since"`
	Why     string           `json:"why,omitempty"` // it is not alive
	NextHop bermmaps.NextHop `json:"next_hop"`
	Trouble string           `json:"trouble,omitempty"` // with its next hop
	Rows    int              `json:"rows"`
}

// Status lists the backends of all sets.
func (c *Controller) Status() ([]Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Status
	for _, name := range slices.Sorted(maps.Keys(c.sets)) {
		s := c.sets[name]
		rows, err := c.maps.Rows.Read(s.id)
		if err != nil {
			return nil, err
		}
		count := map[uint16]int{}
		for _, r := range rows {
			count[r.Owner]++
		}
		for _, m := range s.members {
			b := c.backends[m.Name]
			out = append(out, Status{Set: name, Name: m.Name, Address: b.address, Self: m.Name == c.self, Alive: b.alive,
				Since: b.since, Why: b.why, NextHop: b.hop, Trouble: b.told, Rows: count[uint16(b.id)]})
		}
	}
	return out, nil
}
