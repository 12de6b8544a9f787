package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/bermedge/berm/bpf"
)

// Config is the one entry of switches, secrets and active indexes.
type Config struct {
	set *Set
	w   *window
}

const configWords = int(unsafe.Sizeof(bpf.XDPBermConfig{})) / 8

// Get returns a copy of all fields.
func (c *Config) Get() bpf.XDPBermConfig {
	var v bpf.XDPBermConfig
	into := (*[configWords]uint64)(unsafe.Pointer(&v))
	for i := range into {
		into[i] = atomic.LoadUint64(&c.w.words()[i])
	}
	return v
}

// Update changes fields. fn gets a copy; the 64-bit words that differ afterwards are stored one by
// one, so a packet may meet two halves of a secret that changes. The active indexes and the count
// of VIPs belong to VIPs and Prefixes: changes to them are refused.
func (c *Config) Update(fn func(*bpf.XDPBermConfig)) error {
	return c.set.lock.hold(func() error {
		before := c.Get()
		after := before
		fn(&after)
		if after.VipActive != before.VipActive || after.PrefixActive != before.PrefixActive || after.Vips != before.Vips {
			return errors.New("config update: vip_active, prefix_active and vips change only by replacing tables")
		}
		c.store(before, after)
		return nil
	})
}

// setFlag needs the lock.
func (c *Config) setFlag(flag bpf.XDPBermConfigFlags, on bool) {
	before := c.Get()
	after := before
	after.Flags &^= uint32(flag)
	if on {
		after.Flags |= uint32(flag)
	}
	c.store(before, after)
}

func (c *Config) store(before, after bpf.XDPBermConfig) {
	from := (*[configWords]uint64)(unsafe.Pointer(&before))
	to := (*[configWords]uint64)(unsafe.Pointer(&after))
	for i := range to {
		if to[i] != from[i] {
			atomic.StoreUint64(&c.w.words()[i], to[i])
		}
	}
}

// Self is this edge as the kernel half knows it.
type Self struct {
	Backend  uint32     // id of the backend that is this edge; 0 = none
	Address4 netip.Addr // outer source of tunnels, and where they arrive; zero = none
	Address6 netip.Addr
}

// Self returns who this edge is.
func (c *Config) Self() Self {
	v := c.Get()
	return Self{Backend: v.Self, Address4: fromAddr(v.Self4), Address6: fromAddr(v.Self6)}
}

// SetSelf says who this edge is.
func (c *Config) SetSelf(s Self) error {
	if s.Address4.IsValid() && !s.Address4.Unmap().Is4() {
		return fmt.Errorf("self: %s is not an IPv4 address", s.Address4)
	}
	if s.Address6.IsValid() && (!s.Address6.Is6() || s.Address6.Is4In6()) {
		return fmt.Errorf("self: %s is not an IPv6 address", s.Address6)
	}
	return c.Update(func(v *bpf.XDPBermConfig) {
		v.Self, v.Self4, v.Self6 = s.Backend, toAddr(s.Address4), toAddr(s.Address6)
	})
}

// MTU is the size of the largest outer IP packet that may be sent to a backend, in bytes; 0 = no bound.
func (c *Config) MTU() int { return int(c.Get().Mtu) }

// SetMTU bounds outer IP packets; 0 lifts the bound.
func (c *Config) SetMTU(bytes int) error {
	if bytes < 0 || bytes > 65535 {
		return fmt.Errorf("mtu: %d is not between 0 and 65535 bytes", bytes)
	}
	return c.Update(func(v *bpf.XDPBermConfig) { v.Mtu = uint32(bytes) })
}

// Secrets are the site's keys, the same on all its edges.
type Secrets struct {
	Flow [2]uint64 // of rows: changing it moves flows
	Tags [2]uint64 // of tunnel tags: in use, and still accepted; 0 = none
}

// Secrets returns the site's keys.
func (c *Config) Secrets() Secrets {
	v := c.Get()
	return Secrets{Flow: v.Secret, Tags: v.TagSecrets}
}

// SetSecrets replaces the site's keys.
func (c *Config) SetSecrets(s Secrets) error {
	return c.Update(func(v *bpf.XDPBermConfig) { v.Secret, v.TagSecrets = s.Flow, s.Tags })
}

// ObserveOnly says whether every drop is only counted.
func (c *Config) ObserveOnly() bool {
	return c.Get().Flags&uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY) != 0
}

// SetObserveOnly makes every drop a shadow drop, or stops doing so.
func (c *Config) SetObserveOnly(on bool) error {
	return c.Update(func(v *bpf.XDPBermConfig) {
		v.Flags &^= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY)
		if on {
			v.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY)
		}
	})
}

// Shadow lists the drop reasons that are counted and not enforced.
func (c *Config) Shadow() []Drop {
	mask := c.Get().Shadow
	var reasons []Drop
	for d := range AllDrops() {
		if mask>>d&1 != 0 {
			reasons = append(reasons, d)
		}
	}
	return reasons
}

// SetShadow replaces the drop reasons that are counted and not enforced.
func (c *Config) SetShadow(reasons ...Drop) error {
	var mask uint64
	for _, d := range reasons {
		if d == DropNone || d >= dropMax {
			return fmt.Errorf("shadow: %s is not a drop reason", d)
		}
		mask |= 1 << d
	}
	return c.Update(func(v *bpf.XDPBermConfig) { v.Shadow = mask })
}
