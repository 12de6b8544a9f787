package maps

import (
	"fmt"
	"time"

	"github.com/bermedge/berm/bpf"
)

// Put writes the network facts of a prefix and protocol, as of now. Those of TCP are the kernel half's to write, which
// takes no part in a lock: of UDP the daemon's connections are the only writer.
func (p *Paths) Put(path Path) error {
	prefix := PathPrefix(path.Prefix.Addr())
	key := bpf.XDPBermPathKey{Prefix: toAddr(prefix.Addr()), Proto: uint32(path.Protocol)}
	us := func(d time.Duration) uint32 { return uint32(min(max(d, 0).Microseconds(), 1<<32-1)) }
	v := bpf.XDPBermPath{
		UpdatedNs: monotonic(), Connections: path.Connections, Sent: path.Sent, Delivered: path.Delivered, Lost: path.Lost, Retransmitted: path.Retransmitted,
		SrttUs: us(path.RTT), MinRttUs: us(path.MinRTT), RttvarUs: us(path.RTTVar), RateKbps: path.RateKbps, Bursts: path.Bursts,
	}
	if err := p.m.Put(&key, &v); err != nil {
		return fmt.Errorf("path of %s, %s: %w", prefix, path.Protocol, err)
	}
	return nil
}
