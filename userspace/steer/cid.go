package steer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	bermmaps "github.com/bermedge/berm/maps"
)

// defaultServerIDs is how many there are of those made of names: what two bytes hold, but 0.
const defaultServerIDs = 1<<16 - 1

// Server is the backend's number in QUIC connection IDs. It depends on nothing but the backend, so
// that all edges of a site agree, and go on agreeing when others come and go.
func (b Backend) Server() uint64 {
	if b.ServerID != nil {
		return *b.ServerID
	}
	sum := sha256.Sum256([]byte("berm server id\x00" + b.Name))
	return 1 + binary.BigEndian.Uint64(sum[:8])%defaultServerIDs
}

// validateServers: a server ID names one backend, and fits every format.
func (c Config) validateServers() (errs []error) {
	names, servers := map[uint64]string{}, map[string]uint64{}
	all, far := c.all(), c.siteSets()
	for _, set := range slices.Sorted(maps.Keys(all)) {
		key := "backends." + set
		if s, ok := far[set]; ok {
			key = "sites." + s.site + ".backends." + s.set
		}
		for i, b := range all[set] {
			at, id := fmt.Sprintf("%s[%d].server_id", key, i), b.Server()
			other, taken := names[id]
			old, known := servers[b.Name]
			switch {
			case taken && other != b.Name:
				errs = append(errs, fmt.Errorf("%s: %d is already that of backend %q (write another one for either, the same on all edges)", at, id, other))
			case known && old != id:
				errs = append(errs, fmt.Errorf("%s: backend %q has %d elsewhere and %d here: it can have one", at, b.Name, old, id))
			}
			names[id], servers[b.Name] = b.Name, id
			for _, f := range c.CIDs {
				if bits.Len64(id) > 8*f.ServerIDLen {
					errs = append(errs, fmt.Errorf("%s: %d does not fit the %d byte of connection ID format %d (write a smaller one, or raise quic.cid[].server_id_length)", at, id, f.ServerIDLen, f.ID))
				}
			}
		}
	}
	return errs
}

// nameServers tells the kernel half which backend has which server ID, and how connection IDs say so. ICE
// username fragments need no more than the IDs.
func (c *Controller) nameServers(cfg Config, backends map[string]*backend, sets map[string]*set) error {
	servers := map[string]*bermmaps.Server{}
	far := cfg.siteSets()
	for set, members := range cfg.all() {
		if s, ok := far[set]; ok {
			set = s.set // packets for this site's set may be for that site's edges
		}
		for _, m := range members {
			s := servers[m.Name]
			if s == nil {
				s = &bermmaps.Server{ID: m.Server(), Backend: backends[m.Name].id}
				servers[m.Name] = s
			}
			s.Sets = append(s.Sets, sets[set].id)
		}
	}
	var list []bermmaps.Server
	for _, s := range servers {
		list = append(list, *s)
	}
	return c.maps.CIDs.Replace(cfg.CIDs, list)
}
