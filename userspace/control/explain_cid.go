package control

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/bermedge/berm/maps"
)

// CIDReader reads the server ID in a QUIC connection ID of a format. An error says that it has none.
type CIDReader func(f maps.CIDFormat, cid []byte) (uint64, error)

// WithCIDs lets l explain connection IDs.
func (l *Local) WithCIDs(read CIDReader) *Local {
	l.readCID = read
	return l
}

// NamedServer is what a QUIC connection ID says.
type NamedServer struct {
	Format    uint8  `json:"format"`
	Encrypted bool   `json:"encrypted"`
	ServerID  uint64 `json:"server_id"`
	Backend   string `json:"backend,omitempty"` // "" = nobody has the server ID
}

// explainCIDAlone tells what a connection ID says, whatever the flow.
func (l *Local) explainCIDAlone(f Flow) (Steering, error) {
	out := Steering{Flow: f, Row: -1}
	b, _, err := l.namedBackend(f, &out)
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

func (l *Local) deliveryTo(b maps.Backend) string {
	switch {
	case b.ID == l.set.Config.Self().Backend:
		return maps.ExitLocal.String()
	case b.NextHop.Ready:
		return maps.ExitForward.String()
	}
	return "by row"
}

// byCID follows the connection ID of a packet for a VIP; done means that it decides.
func (l *Local) byCID(vip maps.VIP, set uint32, f Flow, out *Steering) (done bool, err error) {
	if f.CID == "" {
		if vip.QUIC {
			out.step("the VIP steers QUIC by connection ID, and none was given: this is where packets go whose ID names nobody, as a client's first")
		}
		return false, nil
	}
	if !vip.QUIC {
		out.step("the VIP does not steer by connection ID: the row decides")
		return false, nil
	}
	b, sets, err := l.namedBackend(f, out)
	if err != nil || b == nil {
		return false, err
	}
	if !slices.Contains(sets, set) {
		out.step("%s is no backend of set %s: the row decides (cid_lost)", b.Name, vip.Backends)
		return false, nil
	}
	out.Delivery = l.deliveryTo(*b)
	switch out.Delivery {
	case maps.ExitLocal.String():
		out.step("%s is this host: delivered here", b.Name)
	case maps.ExitForward.String():
		out.step("%s (%s) is ready: %s", b.Name, b.Address, wayTo(*b))
	default:
		out.step("the next hop of %s (%s) is not known: the row decides (cid_lost)", b.Name, b.Address)
		return false, nil
	}
	out.Owner = b.Name
	return true, nil
}

// namedBackend is the backend that a connection ID names; nil if it names nobody.
func (l *Local) namedBackend(f Flow, out *Steering) (b *maps.Backend, sets []uint32, err error) {
	cid, err := hex.DecodeString(f.CID)
	if err != nil || len(cid) == 0 {
		return nil, nil, fmt.Errorf("connection ID %q: want hex digits, two for each byte", f.CID)
	}
	if l.readCID == nil {
		return nil, nil, errors.New("connection IDs cannot be read here")
	}
	formats, err := l.set.CIDs.Formats()
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(formats, func(x maps.CIDFormat) bool { return x.ID == cid[0]>>5 })
	if i < 0 {
		out.step("connection ID %s is of format %d, which is not in force: it names nobody", f.CID, cid[0]>>5)
		return nil, nil, nil
	}
	format := formats[i]
	size := 1 + format.ServerIDLen + format.NonceLen
	how := "in the clear"
	if len(format.Key) > 0 {
		how = "encrypted"
	}
	out.step("connection ID %s is of format %d: %d bytes, server ID of %d, %s", f.CID, format.ID, size, format.ServerIDLen, how)
	if len(cid) < size || f.Long && len(cid) != size {
		out.step("it has %d bytes: it is not one that a server gave out, and names nobody", len(cid))
		return nil, nil, nil
	}
	id, err := l.readCID(format, cid[:size])
	if err != nil {
		return nil, nil, fmt.Errorf("connection ID %s: %w", f.CID, err)
	}
	out.CID = &NamedServer{Format: format.ID, Encrypted: len(format.Key) > 0, ServerID: id}
	server, err := l.set.CIDs.Server(id)
	if errors.Is(err, maps.ErrNotFound) {
		out.step("no backend has server ID %d: it names nobody", id)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	found, err := l.set.Backends.ByID(server.Backend)
	if err != nil {
		return nil, nil, err
	}
	out.CID.Backend = found.Name
	out.step("server ID %d is that of %s (%s)", id, found.Name, found.Address)
	return &found, server.Sets, nil
}
