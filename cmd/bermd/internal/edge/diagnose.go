package edge

import (
	"context"
	"errors"
	"net/netip"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/diagnose"
)

// Diagnose tells where the time of a client's requests goes. Without the kernel half nothing is known of its network.
func (e *Edge) Diagnose(_ context.Context, ip netip.Addr) (control.Diagnosis, error) {
	out := control.Diagnosis{IP: ip, Prefix: maps.PathPrefix(ip)}
	var path *maps.Path
	err := e.kernel.use(func(set *maps.Set) error {
		for _, proto := range []maps.Protocol{maps.ProtocolTCP, maps.ProtocolUDP} {
			p, err := set.Paths.Get(ip, proto)
			switch {
			case errors.Is(err, maps.ErrNotFound):
			case err != nil:
				return err
			case path == nil || p.Updated.After(path.Updated): // what the client uses now
				path = &p
			}
		}
		return nil
	})
	if err != nil && e.kernel.problem() == nil {
		return control.Diagnosis{}, err
	}
	var times *diagnose.Times
	if t, ok := e.segments.Get(ip); ok {
		times = &t
		out.Requests, out.Fetched = t.Requests, t.Fetched
	}
	if path != nil {
		out.Connections = path.Connections
	}
	d := diagnose.Of(path, times)
	out.Segment, out.Why, out.Loss = d.Segment, d.Why, d.Loss
	out.Network, out.Queues, out.Edge, out.Origin = d.Network.Seconds(), d.Queues.Seconds(), d.Edge.Seconds(), d.Origin.Seconds()
	return out, nil
}
