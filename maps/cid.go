package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// CIDs says how QUIC connection IDs name the backend that their packets go to.
type CIDs struct {
	set                  *Set
	formats, sids, large *ebpf.Map
}

// Limits of what the kernel half can read of the connection IDs of
// draft-ietf-quic-load-balancers-21, which allows server IDs of 15 bytes.
const (
	MaxServerIDLen = 8 // BERM_CID_SERVER
	maxCIDContent  = 19
	minNonceLen    = 4
	cidFormats     = 7       // BERM_CIDS, without the one that the draft gives to IDs that name nobody
	smallSIDs      = 1 << 16 // BERM_SIDS
	cidKeyLen      = 16      // AES-128
)

// CIDFormat is a format of connection IDs.
type CIDFormat struct {
	ID          uint8  `json:"id"`               // the three bits that tell formats apart: 0 to 6
	ServerIDLen int    `json:"server_id_length"` // bytes
	NonceLen    int    `json:"nonce_length"`
	Key         []byte `json:"-"` // 16 bytes; empty: server IDs are in the clear
}

// Server says who has a server ID.
type Server struct {
	ID      uint64   `json:"server_id"`
	Backend uint32   `json:"backend"`
	Sets    []uint32 `json:"sets"` // that it is a backend of
}

// Validate says what is wrong with a format.
func (f CIDFormat) Validate() error {
	switch {
	case f.ID >= cidFormats:
		return fmt.Errorf("connection ID format %d: want 0 to %d", f.ID, cidFormats-1)
	case f.ServerIDLen < 1 || f.ServerIDLen > MaxServerIDLen:
		return fmt.Errorf("connection ID format %d: server ID of %d bytes: want 1 to %d", f.ID, f.ServerIDLen, MaxServerIDLen)
	case f.NonceLen < minNonceLen || f.ServerIDLen+f.NonceLen > maxCIDContent:
		return fmt.Errorf("connection ID format %d: nonce of %d bytes: want at least %d, and at most %d with the server ID", f.ID, f.NonceLen, minNonceLen, maxCIDContent)
	case len(f.Key) != 0 && len(f.Key) != cidKeyLen:
		return fmt.Errorf("connection ID format %d: key of %d bytes: want %d", f.ID, len(f.Key), cidKeyLen)
	}
	return nil
}

// Formats lists the formats in force, by ID.
func (c *CIDs) Formats() ([]CIDFormat, error) {
	entries, err := all[bpf.XDPBermCid](c.formats)
	if err != nil {
		return nil, err
	}
	var list []CIDFormat
	for id := range entries {
		e := &entries[id]
		if e.Flags&uint32(bpf.XDPBermCidFlagsBERM_CID_USED) == 0 {
			continue
		}
		f := CIDFormat{ID: uint8(id), ServerIDLen: int(e.ServerLen), NonceLen: int(e.ContentLen - e.ServerLen)}
		if e.Flags&uint32(bpf.XDPBermCidFlagsBERM_CID_BLOCK|bpf.XDPBermCidFlagsBERM_CID_FEISTEL) != 0 {
			f.Key = e.Key[:]
		}
		list = append(list, f)
	}
	return list, nil
}

// Server returns who has a server ID, or ErrNotFound.
func (c *CIDs) Server(id uint64) (Server, error) {
	var e bpf.XDPBermSid
	var err error
	if id < smallSIDs {
		err = c.sids.Lookup(uint32(id), &e)
	} else {
		err = c.large.Lookup(id, &e)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && e.Backend == 0 {
		return Server{}, fmt.Errorf("server ID %d: %w", id, ErrNotFound)
	}
	if err != nil {
		return Server{}, fmt.Errorf("server ID %d: %w", id, err)
	}
	return decodeServer(id, &e), nil
}

func decodeServer(id uint64, e *bpf.XDPBermSid) Server {
	s := Server{ID: id, Backend: e.Backend}
	for set := range uint32(64) {
		if e.Sets>>set&1 != 0 {
			s.Sets = append(s.Sets, set)
		}
	}
	return s
}

// Servers lists who has a server ID, by ID.
func (c *CIDs) Servers() ([]Server, error) {
	entries, err := all[bpf.XDPBermSid](c.sids)
	if err != nil {
		return nil, err
	}
	var list []Server
	for id := range entries {
		if entries[id].Backend != 0 {
			list = append(list, decodeServer(uint64(id), &entries[id]))
		}
	}
	var id uint64
	var e bpf.XDPBermSid
	it := c.large.Iterate()
	for it.Next(&id, &e) {
		list = append(list, decodeServer(id, &e))
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list server IDs: %w", err)
	}
	slices.SortFunc(list, func(a, b Server) int { return int(min(a.ID, 1<<62)) - int(min(b.ID, 1<<62)) })
	return list, nil
}

// Replace makes these the formats and server IDs in force. What stays is not touched, so that packets
// of connections that go on are steered throughout; a format that changes under its ID names
// nobody while it is written.
func (c *CIDs) Replace(formats []CIDFormat, servers []Server) error {
	want := map[uint8]bpf.XDPBermCid{}
	for _, f := range formats {
		if err := f.Validate(); err != nil {
			return err
		}
		if _, ok := want[f.ID]; ok {
			return fmt.Errorf("connection ID format %d: %w by another", f.ID, ErrOverlap)
		}
		e, err := encodeCID(f)
		if err != nil {
			return err
		}
		want[f.ID] = e
	}
	sids, err := encodeSIDs(servers)
	if err != nil {
		return err
	}
	if large := len(sids) - countSmall(sids); large > int(c.large.MaxEntries()) {
		return fmt.Errorf("%d server IDs above %d: %w", large, smallSIDs-1, ErrFull)
	}
	return c.set.lock.hold(func() error {
		if err := c.replaceServers(sids); err != nil {
			return err
		}
		return c.replaceFormats(want)
	})
}

func encodeSIDs(servers []Server) (map[uint64]bpf.XDPBermSid, error) {
	sids := map[uint64]bpf.XDPBermSid{}
	for _, s := range servers {
		e := bpf.XDPBermSid{Backend: s.Backend}
		if _, ok := sids[s.ID]; ok {
			return nil, fmt.Errorf("server ID %d: %w by another backend", s.ID, ErrOverlap)
		}
		for _, set := range s.Sets {
			if set >= 64 {
				return nil, fmt.Errorf("server ID %d: set %d: want below 64", s.ID, set)
			}
			e.Sets |= 1 << set
		}
		sids[s.ID] = e
	}
	return sids, nil
}

func countSmall(sids map[uint64]bpf.XDPBermSid) (n int) {
	for id := range sids {
		if id < smallSIDs {
			n++
		}
	}
	return n
}

// replaceServers writes what is new before it takes away what is gone.
func (c *CIDs) replaceServers(want map[uint64]bpf.XDPBermSid) error {
	old, err := c.Servers()
	if err != nil {
		return err
	}
	have := map[uint64]bool{}
	for _, s := range old {
		have[s.ID] = true
	}
	for id, e := range want {
		if err := c.putServer(id, e); err != nil {
			return err
		}
		delete(have, id)
	}
	for id := range have {
		if id < smallSIDs {
			err = put(c.sids, uint32(id), bpf.XDPBermSid{})
		} else if err = c.large.Delete(id); err != nil {
			err = fmt.Errorf("forget server ID %d: %w", id, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *CIDs) putServer(id uint64, e bpf.XDPBermSid) error {
	if id < smallSIDs {
		return put(c.sids, uint32(id), e)
	}
	if err := c.large.Put(id, &e); err != nil {
		return fmt.Errorf("server ID %d: %w", id, err)
	}
	return nil
}

func (c *CIDs) replaceFormats(want map[uint8]bpf.XDPBermCid) error {
	old, err := all[bpf.XDPBermCid](c.formats)
	if err != nil {
		return err
	}
	for id := range uint8(cidFormats) {
		e := want[id]
		if old[id] == e {
			continue
		}
		// First nothing: a packet must not meet half of each.
		if err := put(c.formats, uint32(id), bpf.XDPBermCid{}); err != nil {
			return err
		}
		if e.Flags != 0 {
			if err := put(c.formats, uint32(id), e); err != nil {
				return err
			}
		}
	}
	return nil
}

// encodeCID computes for the kernel what it would otherwise compute for every packet.
func encodeCID(f CIDFormat) (bpf.XDPBermCid, error) {
	n := f.ServerIDLen + f.NonceLen
	e := bpf.XDPBermCid{
		Flags: uint32(bpf.XDPBermCidFlagsBERM_CID_USED), ServerLen: uint8(f.ServerIDLen), ContentLen: uint8(n),
	}
	if len(f.Key) == 0 {
		return e, nil
	}
	e.Key = [cidKeyLen]byte(f.Key)
	if n == cidKeyLen {
		e.Flags |= uint32(bpf.XDPBermCidFlagsBERM_CID_BLOCK)
		e.Keys = aesDecryptKeys(e.Key)
		return e, nil
	}
	e.Flags |= uint32(bpf.XDPBermCidFlagsBERM_CID_FEISTEL)
	e.Keys = aesEncryptKeys(e.Key)
	// Each half has 4 bits for a byte of the content. The left one starts with them; the right one
	// ends with them within whole bytes.
	e.Left = bits128(0, 4*n)
	e.Right = bits128((n+1)/2*8-4*n, (n+1)/2*8)
	return e, nil
}

// bits128 has the bits from one to another set, counted from the highest of 128.
func bits128(from, to int) (words [2]uint64) {
	for i := from; i < to; i++ {
		words[i/64] |= 1 << (63 - i%64)
	}
	return words
}
