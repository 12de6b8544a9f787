package maps

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// ParseASN reads the number of an autonomous system, with or without AS before it.
func ParseASN(s string) (uint32, error) {
	digits := s
	if len(s) > 2 && strings.EqualFold(s[:2], "AS") {
		digits = s[2:]
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("network %.60q: want the number of an autonomous system, such as 64496", s)
	}
	return uint32(n), nil
}

// Networks returns the networks' profiles, by the number of their autonomous system; "" is the host's.
func (c *CC) Networks() (map[uint32]string, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	ids, err := c.networkIDs()
	if err != nil {
		return nil, err
	}
	out := make(map[uint32]string, len(ids))
	for asn, id := range ids {
		out[asn] = names[id]
	}
	return out, nil
}

func (c *CC) networkIDs() (map[uint32]uint32, error) {
	ids := map[uint32]uint32{}
	var asn, id uint32
	it := c.networks.Iterate()
	for it.Next(&asn, &id) {
		ids[asn] = id
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read the profiles of networks: %w", err)
	}
	return ids, nil
}

// SetNetworks makes the networks' profiles what want says.
func (c *CC) SetNetworks(want map[uint32]string) error {
	return c.set.lock.hold(func() error {
		was, err := c.networkIDs()
		if err != nil {
			return err
		}
		if len(want) > CCNetworks {
			return fmt.Errorf("%d networks: %w, %d fit", len(want), ErrFull, CCNetworks)
		}
		for asn := range was {
			if _, stays := want[asn]; stays {
				continue
			}
			if err := c.networks.Delete(asn); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("network AS%d: %w", asn, err)
			}
		}
		for asn, name := range want {
			id, err := c.id(name)
			if err != nil {
				return fmt.Errorf("network AS%d: %w", asn, err)
			}
			if old, ok := was[asn]; ok && old == id {
				continue
			}
			if err := c.networks.Put(asn, id); err != nil {
				return fmt.Errorf("network AS%d: %w", asn, err)
			}
		}
		return nil
	})
}
