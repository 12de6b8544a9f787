package quiccc

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// maxFloors bounds the prefixes whose loss floor is kept: 1 KiB each. When there are more, any one of them is forgotten.
const maxFloors = 4096

// floors are the loss floors of prefixes, from what connections there met.
type floors struct {
	begun time.Time // learners count from here

	mu    sync.Mutex
	key   []byte // of the hash that clients are remembered by
	by    map[netip.Prefix]*controller.FloorLearner
	dirty bool // since the last save
}

func newFloors() *floors {
	f := &floors{begun: time.Now(), key: make([]byte, floorsKey), by: map[netip.Prefix]*controller.FloorLearner{}}
	_, _ = rand.Read(f.key) // never fails, and ends the process if it ever does
	return f
}

// of is the floor that a client's connection begins with.
func (f *floors) of(client netip.Addr) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.by[maps.PathPrefix(client)]; l != nil {
		return l.Floor(time.Since(f.begun))
	}
	return 0
}

// learn takes in what a connection has met so far, with the weight of what it sent since it last told.
func (f *floors) learn(client netip.Addr, packets int64, share float64) {
	if packets == 0 || !client.IsValid() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	prefix := maps.PathPrefix(client)
	l := f.by[prefix]
	if l == nil {
		if len(f.by) >= maxFloors {
			for other := range f.by {
				delete(f.by, other)
				break
			}
		}
		l = &controller.FloorLearner{}
		f.by[prefix] = l
	}
	l.Learn(time.Since(f.begun), f.hash(source(client)), packets, share)
	f.dirty = true
}

func (f *floors) hash(p netip.Prefix) uint64 {
	a := p.Addr().As16()
	sum := sha256.Sum256(append(f.key[:floorsKey:floorsKey], a[:]...))
	return binary.BigEndian.Uint64(sum[:])
}

// source is who counts as one: an IPv4 address or an IPv6 /64.
func source(client netip.Addr) netip.Prefix {
	bits := 64
	if client.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(client, bits).Masked()
}
