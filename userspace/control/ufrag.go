package control

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/bermedge/berm/maps"
)

// Ufrag is an ICE username fragment, and whom it names.
type Ufrag struct {
	Ufrag    string `json:"ufrag"`
	ServerID uint64 `json:"server_id"`
	Backend  string `json:"backend,omitempty"` // "" = nobody has the server ID
}

// MintUfrag makes an ICE username fragment that names a backend, "" for this host, unlike all others. Checks
// that show it are steered there.
func (l *Local) MintUfrag(_ context.Context, backend string) (Ufrag, error) {
	id := l.set.Config.Self().Backend
	if backend != "" {
		b, err := l.set.Backends.Get(backend)
		if err != nil {
			return Ufrag{}, err
		}
		id = b.ID
	}
	if id == 0 {
		return Ufrag{}, errors.New("this host is no backend: name one")
	}
	b, err := l.set.Backends.ByID(id)
	if err != nil {
		return Ufrag{}, err
	}
	servers, err := l.set.CIDs.Servers()
	if err != nil {
		return Ufrag{}, err
	}
	i := slices.IndexFunc(servers, func(s maps.Server) bool { return s.Backend == id })
	if i < 0 {
		return Ufrag{}, fmt.Errorf("backend %s has no server ID: the daemon gives them out", b.Name)
	}
	server := servers[i].ID
	if server > 0xffff {
		return Ufrag{}, fmt.Errorf("backend %s has server ID %d: an ICE username fragment has room for two bytes", b.Name, server)
	}
	var nonce [4]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return Ufrag{}, err
	}
	return Ufrag{maps.Ufrag(l.set.Config.Secrets().Flow, uint16(server), binary.BigEndian.Uint32(nonce[:])), server, b.Name}, nil
}

// explainUfragAlone tells what an ICE username fragment says, whatever the flow.
func (l *Local) explainUfragAlone(f Flow) (Steering, error) {
	out := Steering{Flow: f, Row: -1}
	b, _, err := l.ufragBackend(f.Ufrag, &out)
	if err != nil {
		return out, err
	}
	if b == nil {
		out.Delivery = "by row"
		out.step("so the row of the flow decides")
		return out, nil
	}
	out.Owner, out.Delivery = b.Name, l.deliveryTo(*b)
	return out, nil
}

// byUfrag follows the ICE username fragment in a check for a VIP, or the one that the flow has shown; done
// means that it decides.
func (l *Local) byUfrag(vip maps.VIP, set uint32, f Flow, proto maps.Protocol, out *Steering) (done bool, err error) {
	if !vip.STUN {
		if f.Ufrag != "" {
			out.step("the VIP does not steer by ICE username fragment: the row decides")
		}
		return false, nil
	}
	var b *maps.Backend
	if f.Ufrag != "" {
		var sets []uint32
		if b, sets, err = l.ufragBackend(f.Ufrag, out); err != nil {
			return false, err
		}
		if b != nil && !slices.Contains(sets, set) {
			out.step("%s is no backend of set %s: the row decides (stun_lost)", b.Name, vip.Backends)
			return false, nil
		}
	}
	if b == nil {
		id, err := l.set.STUN.Named(maps.FlowHash(l.set.Config.Secrets().Flow, f.Source, f.Destination, proto))
		if err != nil {
			return false, err
		}
		if id == 0 {
			out.step("the VIP steers WebRTC by ICE username fragment, and no packet of the flow has shown one here")
			return false, nil
		}
		found, err := l.set.Backends.ByID(id)
		if err != nil {
			return false, err
		}
		b = &found
		out.step("the flow has shown an ICE username fragment of %s here: that holds for 30 s after its last check", b.Name)
	}
	out.Delivery = l.deliveryTo(*b)
	switch out.Delivery {
	case maps.ExitLocal.String():
		out.step("%s is this host: delivered here", b.Name)
	case maps.ExitForward.String():
		out.step("%s (%s) is ready: encapsulated and sent to it", b.Name, b.Address)
	default:
		out.step("the next hop of %s (%s) is not known: the row decides (stun_lost)", b.Name, b.Address)
		return false, nil
	}
	out.Owner = b.Name
	return true, nil
}

// ufragBackend is the backend that an ICE username fragment names; nil if it names nobody.
func (l *Local) ufragBackend(ufrag string, out *Steering) (b *maps.Backend, sets []uint32, err error) {
	id, err := maps.ReadUfrag(l.set.Config.Secrets().Flow, ufrag)
	if err != nil {
		out.step("%v: it names nobody", err)
		return nil, nil, nil
	}
	out.Ufrag = &Ufrag{Ufrag: ufrag, ServerID: uint64(id)}
	server, err := l.set.CIDs.Server(uint64(id))
	if errors.Is(err, maps.ErrNotFound) {
		out.step("no backend has server ID %d: it names nobody (stun_lost)", id)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	found, err := l.set.Backends.ByID(server.Backend)
	if err != nil {
		return nil, nil, err
	}
	out.Ufrag.Backend = found.Name
	out.step("ICE username fragment %s has server ID %d, that of %s (%s)", ufrag, id, found.Name, found.Address)
	return &found, server.Sets, nil
}
