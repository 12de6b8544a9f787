package config

import (
	"errors"
	"fmt"

	bermmaps "github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/steer"
)

// regions are those of services.
func (c *Config) regions() (out []string) {
	for _, v := range c.VIPs {
		out = append(out, v.Region)
	}
	return out
}

// Abroad is what the service wants of other sites.
func (v VIP) Abroad() steer.Abroad {
	return steer.Abroad{Set: v.Backends, Spill: v.Spill, Region: v.Region, Outside: v.Outside}
}

// CheckSpill says whether a service may spill so.
func (c *Config) CheckSpill(v VIP) error {
	if v.Spill.BasisPoints > 0 && v.Protocol == bermmaps.ProtocolUDP && !v.QUIC {
		return errors.New("spill: of udp, only QUIC's flows have a beginning (set quic: true where the service is such)")
	}
	return c.Steering().ValidateAbroad(v.Abroad())
}

func (c *Config) checkSites(d *decoder) {
	for i, v := range c.VIPs {
		d.reportTree(fmt.Sprintf("vips[%d]", i), c.CheckSpill(v))
	}
}
