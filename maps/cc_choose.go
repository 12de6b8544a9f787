package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Choose returns the profile that a client's connection begins with; one without a name is the host's. It decides as
// the kernel half does, in a few lookups however many rules there are, and draws of the share that is held out by the
// client's port: Explain also tells why.
func (c *CC) Choose(client netip.AddrPort) (CCProfile, error) {
	a := client.Addr().Unmap().WithZone("")
	id, err := c.choose(a, client.Port())
	if err != nil {
		return CCProfile{}, fmt.Errorf("profile of %s: %w", a, err)
	}
	var p bpf.XDPBermCcProfile
	if err := c.profiles.Lookup(id, &p); err != nil {
		return CCProfile{}, fmt.Errorf("profile %d of %s: %w", id, a, err)
	}
	if p.Used == 0 {
		return CCProfile{}, nil
	}
	return decodeCCProfile(id, &p), nil
}

func (c *CC) choose(a netip.Addr, port uint16) (id uint32, err error) {
	key := toCCKey(netip.PrefixFrom(a, a.BitLen()))
	var rule bpf.XDPBermCcRule
	switch err := c.rules.Lookup(&key, &rule); {
	case err == nil:
		return c.drawn(a, port, rule), nil
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return 0, err
	}
	record, err := c.set.Prefixes.Lookup(a)
	if err != nil {
		return 0, err
	}
	return id, c.countries.Lookup(uint32(record.Country), &id)
}

// drawn is one of a rule's others for a share of the flows. Who has not the seed cannot tell which.
func (c *CC) drawn(a netip.Addr, port uint16, rule bpf.XDPBermCcRule) uint32 {
	if rule.Holdout == 0 {
		return rule.Profile
	}
	hi, lo := halves(a)
	hash := hashSource(c.set.Config.Get().Seed, hi*hashB^lo^uint64(port)*hashC) >> 32
	if uint8(hash) >= rule.Holdout {
		return rule.Profile
	}
	return uint32(rule.Others[hash>>8&1])
}
