package quiclb

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync/atomic"

	"github.com/quic-go/quic-go"
)

// ErrLength says that connection IDs would get another length, which open listeners cannot change.
var ErrLength = errors.New("connection IDs of another length")

// Generator gives quic-go connection IDs that name this server, in Retry packets too. What it gives
// can change at any time; its length cannot.
type Generator struct {
	length int
	now    atomic.Pointer[source]
}

var _ quic.ConnectionIDGenerator = (*Generator)(nil)

// source is a format and who is named. Without a codec it names nobody.
type source struct {
	codec  *Codec
	server []byte
}

// NewGenerator returns a generator of connection IDs of a length in bytes, which name nobody.
func NewGenerator(length int) *Generator {
	g := &Generator{length: length}
	g.now.Store(&source{})
	return g
}

// Use makes the IDs name a server in the first format that has the generator's length. If that is not
// the first of all, the error is ErrLength. Without a format, or without a server, they name nobody.
func (g *Generator) Use(formats []Format, server *uint64) error {
	next := &source{}
	var err error
	for i, f := range formats {
		c, cerr := New(f)
		if cerr != nil {
			return cerr
		}
		if c.Len() != g.length {
			if i == 0 {
				err = ErrLength
			}
			continue
		}
		if server != nil {
			next = &source{codec: c, server: ServerID(*server, f.ServerIDLen)}
		}
		break
	}
	g.now.Store(next)
	return err
}

// ServerID is a server's number in so many bytes.
func ServerID(n uint64, size int) []byte {
	b := make([]byte, max(size, 8))
	binary.BigEndian.PutUint64(b[len(b)-8:], n)
	return b[len(b)-size:]
}

// Number is the server ID in a connection ID of the format, as a number.
func Number(f Format, cid []byte) (uint64, error) {
	c, err := New(f)
	if err != nil {
		return 0, err
	}
	server, err := c.Decode(cid)
	if err != nil {
		return 0, err
	}
	var n uint64
	for _, b := range server {
		n = n<<8 | uint64(b)
	}
	return n, nil
}

// GenerateConnectionID returns an ID that was most likely never given before.
func (g *Generator) GenerateConnectionID() (quic.ConnectionID, error) {
	return quic.ConnectionIDFromBytes(g.make()), nil
}

// Fitting gives out only those of a generator's IDs that fit. It should refuse few: IDs are made until one does.
func (g *Generator) Fitting(fits func(cid []byte) bool) quic.ConnectionIDGenerator {
	return fitting{g, fits}
}

type fitting struct {
	*Generator
	fits func(cid []byte) bool
}

// GenerateConnectionID returns an ID that fits.
func (f fitting) GenerateConnectionID() (quic.ConnectionID, error) {
	for {
		if cid := f.make(); f.fits(cid) {
			return quic.ConnectionIDFromBytes(cid), nil
		}
	}
}

func (g *Generator) make() []byte {
	s := g.now.Load()
	if s.codec == nil {
		cid := make([]byte, g.length)
		_, _ = rand.Read(cid) // never fails
		cid[0] = unroutable<<idShift | byte(g.length-1)&lengthMask
		return cid
	}
	nonce := make([]byte, s.codec.format.NonceLen)
	_, _ = rand.Read(nonce) // never fails
	return s.codec.Encode(s.server, nonce)
}

// ConnectionIDLen returns the IDs' length in bytes.
func (g *Generator) ConnectionIDLen() int { return g.length }
