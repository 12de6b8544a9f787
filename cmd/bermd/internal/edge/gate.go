package edge

import (
	"errors"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/gate"
)

// keepGate tells the kernel half how this host answers, and learns which services may be flooded.
// TCP clients are told of segments that fit the tunnels between the edges.
func (k *kernelLink) keepGate() {
	var retry *maps.Retry
	var four, six uint16
	err := k.use(func(set *maps.Set) (err error) {
		retry, err = set.Gates.Retry()
		four, six = gate.Segments(set.Config.MTU(), set.Config.Self())
		return errors.Join(err, k.gate.Keep())
	})
	if err != nil {
		if k.problem() == nil {
			k.e.log.Warn("tell the kernel half how to answer", "error", err)
		}
		return
	}
	k.mu.Lock()
	k.retry = retry
	k.mu.Unlock()
	k.e.server.BoundSegments(four, six)
}

// clientsMustShow reports whether QUIC clients have to show that they receive at their address.
func (k *kernelLink) clientsMustShow() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.retry.Wanted()
}

// gateProblems says what keeps gates from working.
func (k *kernelLink) gateProblems() (list []string) {
	_ = k.use(func(*maps.Set) (err error) { // without a kernel half there are no gates
		list, err = k.gate.Problems()
		return err
	})
	return list
}
