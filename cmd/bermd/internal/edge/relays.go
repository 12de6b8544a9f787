package edge

import (
	"context"

	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/observe"
)

// Relays tells how the relays with forward error correction are.
func (e *Edge) Relays(context.Context) ([]control.Relay, error) {
	out := []control.Relay{}
	for _, s := range e.relays.Status() {
		r := control.Relay{
			Name: s.Name, Role: s.Role, Listen: s.Listen, To: s.To,
			Packets: s.Packets, Parity: s.Parity, Dropped: s.Dropped, Senders: s.Senders,
		}
		if s.Path != nil {
			r.Loss, r.Burst = s.Path.Loss, s.Path.Burst
		}
		if p := s.Plan; p != nil {
			r.K, r.M, r.Residual, r.Why = p.K, p.M, p.Residual, p.Why
		}
		if c := s.Received; c != nil {
			r.Received, r.Repaired, r.Missing, r.Duplicates, r.Refused = c.Received, c.Repaired, c.Residual, c.Duplicates, c.Refused
			if n := c.Delivered + c.Residual; n > 0 {
				r.Residual = float64(c.Residual) / float64(n)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// LiveStreams tells how the live streams and their subscribers are.
func (e *Edge) LiveStreams(context.Context) ([]control.LiveStream, error) {
	out := []control.LiveStream{}
	for _, s := range e.streams.Status() {
		l := control.LiveStream{
			Name: s.Name, Listen: s.Listen, Host: s.Host, Path: s.Path, Packets: s.Packets, Dropped: s.Dropped,
			K: s.Shape.K, M: s.Shape.M, Joined: s.Joined, Subscribers: []control.Subscriber{},
		}
		for _, v := range s.Subscribers {
			c := control.Subscriber{
				Client: v.Client, Seconds: v.Seconds, Loss: v.Path.Loss, Burst: v.Path.Burst, K: v.Plan.K, M: v.Plan.M, Expected: v.Plan.Residual,
				Why: v.Plan.Why, Sent: v.Sent, Parity: v.Parity, Late: v.Late, Nacks: v.Nacks, Refused: v.Refused, Missing: v.Residual,
			}
			if v.Prior != nil {
				c.Before = v.Prior.Loss
			}
			if n := v.Delivered + v.Residual; n > 0 {
				c.Residual = float64(v.Residual) / float64(n)
			}
			l.Subscribers = append(l.Subscribers, c)
		}
		out = append(out, l)
	}
	return out, nil
}

func (e *Edge) emitStreams(emit observe.Emit) {
	for _, s := range e.streams.Status() {
		for fate, n := range map[string]uint64{
			"received": s.Packets, "dropped": s.Dropped, "sent": s.Sent, "parity": s.SentParity, "late": s.Late, "delivered": s.Delivered, "missing": s.Residual,
		} {
			emit(observe.StreamPackets, float64(n), s.Name, fate)
		}
		emit(observe.StreamViewers, float64(len(s.Subscribers)), s.Name)
		emit(observe.StreamOverhead, s.Shape.Overhead(), s.Name)
	}
}

func (e *Edge) emitRelays(emit observe.Emit) {
	e.emitStreams(emit)
	for _, s := range e.relays.Status() {
		fate := func(n uint64, fate string) { emit(observe.RelayPackets, float64(n), s.Name, s.Role, fate) }
		fate(s.Packets, "sent")
		fate(s.Dropped, "dropped")
		if s.Role == fec.RoleProtect {
			fate(s.Parity, "parity")
			emit(observe.RelayLoss, s.Path.Loss, s.Name)
			emit(observe.RelayOverhead, s.Plan.Overhead(), s.Name)
			continue
		}
		fate(s.Received.Received, "received")
		fate(s.Received.Repaired, "repaired")
		fate(s.Received.Residual, "missing")
		fate(s.Received.Duplicates, "duplicate")
		fate(s.Received.Refused, "refused")
	}
}
