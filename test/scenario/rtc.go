package scenario

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// rtcPort is a UDP service of the VIP that answers as the server of a WebRTC session does (ICE lite): checks
// with success, anything else with its edge's name.
const (
	rtcPort     = 3478
	rtcPassword = "a-password-of-22-chars"
)

// Of STUN (RFC 8489) and ICE (RFC 8445).
const (
	stunCookie      = 0x2112a442
	stunRequest     = 0x0001
	stunSuccess     = 0x0101
	stunUsername    = 0x0006
	stunIntegrity   = 0x0008
	stunXORAddress  = 0x0020
	stunSoftware    = 0x8022
	stunFingerprint = 0x8028
)

// stunMessage is a message in the making.
type stunMessage struct{ b []byte }

func newSTUN(kind uint16, id []byte) *stunMessage {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint32(append(b, 0, 0), stunCookie)
	return &stunMessage{append(b, id...)}
}

// add appends an attribute; the length in the header counts so many bytes more.
func (m *stunMessage) add(kind uint16, value []byte) {
	m.b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(m.b, kind), uint16(len(value)))
	m.b = append(append(m.b, value...), make([]byte, (4-len(value)%4)%4)...)
	m.length(0)
}

func (m *stunMessage) length(more int) {
	binary.BigEndian.PutUint16(m.b[2:], uint16(len(m.b)-20+more))
}

// seal adds integrity and fingerprint, each over a message whose length has it already.
func (m *stunMessage) seal(password string) []byte {
	m.length(24)
	h := hmac.New(sha1.New, []byte(password))
	h.Write(m.b)
	m.add(stunIntegrity, h.Sum(nil))
	m.length(8)
	m.add(stunFingerprint, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(m.b)^0x5354554e))
	return m.b
}

// stunAttribute finds an attribute, and where it begins.
func stunAttribute(b []byte, kind uint16) (value []byte, at int) {
	for at = 20; at+4 <= len(b); {
		size := int(binary.BigEndian.Uint16(b[at+2:]))
		if at+4+size > len(b) {
			return nil, 0
		}
		if binary.BigEndian.Uint16(b[at:]) == kind {
			return b[at+4 : at+4+size], at
		}
		at += 4 + (size+3)&^3
	}
	return nil, 0
}

func isSTUN(b []byte, kind uint16) bool {
	return len(b) >= 20 && binary.BigEndian.Uint16(b) == kind && binary.BigEndian.Uint32(b[4:]) == stunCookie
}

// stunAnswer is the answer to a check, nil to what is none or has not the session's password.
func stunAnswer(edge string, b []byte, from netip.AddrPort) []byte {
	sum, at := stunAttribute(b, stunIntegrity)
	if at == 0 {
		return nil
	}
	signed := bytes.Clone(b[:at])
	binary.BigEndian.PutUint16(signed[2:], uint16(at-20+24))
	h := hmac.New(sha1.New, []byte(rtcPassword))
	h.Write(signed)
	if !hmac.Equal(h.Sum(nil), sum) {
		return nil
	}
	m := newSTUN(stunSuccess, b[8:20])
	addr := from.Addr().Unmap().AsSlice()
	for i := range addr {
		addr[i] ^= b[4+i] // the cookie and the transaction
	}
	family := byte(1)
	if len(addr) == 16 {
		family = 2
	}
	port := binary.BigEndian.AppendUint16([]byte{0, family}, from.Port()^stunCookie>>16)
	m.add(stunXORAddress, append(port, addr...))
	m.add(stunSoftware, []byte(edge))
	return m.seal(rtcPassword)
}

// rtcCounts is what came to an edge's service.
type rtcCounts struct {
	Checks uint64 `json:"checks"`
	Media  uint64 `json:"media"`
}

// actRTC serves at its sockets (all arguments but the first, its edge's name, and the last, where to ask for
// counts).
func actRTC(ctx context.Context, args []string) error {
	var checks, media atomic.Uint64
	var wg sync.WaitGroup
	var conns []*net.UDPConn
	for _, addr := range args[1 : len(args)-1] {
		at, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return err
		}
		c, err := net.ListenUDP("udp", at)
		if err != nil {
			return err
		}
		conns = append(conns, c)
		wg.Go(func() {
			for buf := make([]byte, 2048); ; {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue // what an ICMP error said about the last answer
				}
				answer := []byte("media " + args[0])
				if isSTUN(buf[:n], stunRequest) {
					checks.Add(1)
					answer = stunAnswer(args[0], buf[:n], from)
				} else {
					media.Add(1)
				}
				_, _ = c.WriteToUDPAddrPort(answer, from) // the client misses it
			}
		})
	}
	err := serveCounts(ctx, args[len(args)-1], func() any { return rtcCounts{checks.Load(), media.Load()} })
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	wg.Wait()
	return err
}
