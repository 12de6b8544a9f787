package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// CCChoice is what an address's next connection begins with, and why.
type CCChoice struct {
	Profile string       `json:"profile"`          // "" is the host's
	Prefix  netip.Prefix `json:"prefix,omitzero"`  // whose rule it is; none: the network's or the country's
	Owner   *Owner       `json:"owner,omitempty"`  // of that rule
	ASN     uint32       `json:"asn,omitzero"`     // of the network that decided
	Country Country      `json:"country,omitzero"` // of the address, where no prefix decided
}

// Explain decides as the kernel half does.
func (c *CC) Explain(a netip.Addr) (CCChoice, error) {
	a = a.Unmap().WithZone("")
	rules, err := c.ListRules()
	if err != nil {
		return CCChoice{}, err
	}
	best := -1
	for i, r := range rules {
		if r.Prefix.Contains(a) && (best < 0 || r.Prefix.Bits() > rules[best].Prefix.Bits()) {
			best = i
		}
	}
	if best >= 0 {
		r := rules[best]
		return CCChoice{Profile: r.Profile, Prefix: r.Prefix, Owner: &r.Owner}, nil
	}
	record, err := c.set.Prefixes.Lookup(a)
	if err != nil {
		return CCChoice{}, err
	}
	networks, err := c.Networks()
	if err != nil {
		return CCChoice{}, err
	}
	if name, ok := networks[record.ASN]; ok {
		return CCChoice{Profile: name, ASN: record.ASN, Country: record.Country}, nil
	}
	by, err := c.Countries()
	if err != nil {
		return CCChoice{}, err
	}
	return CCChoice{Profile: by.Profile(record.Country), Country: record.Country}, nil
}

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
	switch err := c.networks.Lookup(record.ASN, &id); {
	case err == nil:
		return id, nil
	case !errors.Is(err, ebpf.ErrKeyNotExist):
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
