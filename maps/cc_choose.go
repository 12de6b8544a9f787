package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Choose returns the profile that an address's next connection begins with; one without a name is the host's. It decides as
// the kernel half does, in a few lookups however many rules there are: Explain also tells why.
func (c *CC) Choose(a netip.Addr) (CCProfile, error) {
	id, err := c.choose(a.Unmap().WithZone(""))
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

func (c *CC) choose(a netip.Addr) (id uint32, err error) {
	key := toCCKey(netip.PrefixFrom(a, a.BitLen()))
	var rule bpf.XDPBermCcRule
	switch err := c.rules.Lookup(&key, &rule); {
	case err == nil:
		return rule.Profile, nil
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return 0, err
	}
	record, err := c.set.Prefixes.Lookup(a)
	if err != nil {
		return 0, err
	}
	return id, c.countries.Lookup(uint32(record.Country), &id)
}
