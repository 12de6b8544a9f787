package steer

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
)

// Status is what the controller knows about a backend.
type Status struct {
	Set     string           `json:"set"`
	Site    string           `json:"site,omitempty"` // another one, where it is
	Name    string           `json:"name"`
	Address netip.Addr       `json:"address"`
	Self    bool             `json:"self"`
	Via     bermmaps.Via     `json:"via"`
	Probe   string           `json:"probe"`            // how its health is found out
	Direct  string           `json:"direct,omitempty"` // why it is asked at its own address, though its probe is to go through its tunnel
	Alive   bool             `json:"alive"`
	Since   time.Time        `json:"since"`
	Why     string           `json:"why,omitempty"` // it is not alive
	NextHop bermmaps.NextHop `json:"next_hop"`
	Trouble string           `json:"trouble,omitempty"` // with its next hop
	Rows    int              `json:"rows"`
	Moved   int              `json:"moved"`   // of those, whose former owner may still have flows
	HostUp  bool             `json:"host_up"` // its stack answers, even if its daemon does not
	Says    Says             `json:"says"`    // of itself, or what an operator said of it here
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
		count, moved := map[uint16]int{}, map[uint16]int{}
		for _, r := range rows {
			count[r.Owner]++
			if r.Moved {
				moved[r.Owner]++
			}
		}
		for _, m := range s.members {
			b := c.backends[m.Name]
			out = append(out, Status{
				Set: name, Site: b.site, Name: m.Name, Address: b.address, Self: m.Name == c.self, Via: b.via, Probe: b.howProbed(), Direct: b.direct, Alive: b.alive,
				Since: b.since, Why: b.why, NextHop: b.hop, Trouble: b.told, Rows: count[uint16(b.id)],
				Moved: moved[uint16(b.id)], HostUp: b.up || m.Name == c.self, Says: c.saysOf(m.Name),
			})
		}
	}
	return out, nil
}
