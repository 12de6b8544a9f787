// Package quiclb makes and reads QUIC connection IDs that name a server, by
// draft-ietf-quic-load-balancers-21: whoever stands before the servers finds a connection's server
// by its ID, wherever the client has moved to, without remembering anything.
package quiclb

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
)

// Limits of the draft, section 3.
const (
	maxID       = 6 // of a format; 7 marks IDs that name no server
	minNonce    = 4
	maxContent  = 19 // server ID and nonce; a connection ID has 20 bytes
	minServerID = 1
	maxServerID = 15

	unroutable = 7
	idShift    = 5
	lengthMask = 1<<idShift - 1
	oneBlock   = aes.BlockSize
)

// ErrUnroutable says that a connection ID is of another format, or cut short: it names no server.
var ErrUnroutable = errors.New("connection ID of no known format")

// Format says how connection IDs are written. Several are in use at a time while they rotate; ID
// tells them apart.
type Format struct {
	ID          uint8
	ServerIDLen int // bytes
	NonceLen    int
	Key         []byte // of AES-128; empty: server IDs are readable by anybody
}

// Validate reports everything that the draft does not allow.
func (f Format) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if f.ID > maxID {
		fail("id: %d: want 0 to %d", f.ID, maxID)
	}
	if f.ServerIDLen < minServerID || f.ServerIDLen > maxServerID {
		fail("server_id_length: %d bytes: want %d to %d", f.ServerIDLen, minServerID, maxServerID)
	}
	if f.NonceLen < minNonce || f.ServerIDLen+f.NonceLen > maxContent {
		fail("nonce_length: %d bytes: want at least %d, and at most %d with the server ID's", f.NonceLen, minNonce, maxContent)
	}
	if len(f.Key) != 0 && len(f.Key) != aes.BlockSize {
		fail("key: %d bytes: want %d", len(f.Key), aes.BlockSize)
	}
	return errors.Join(errs...)
}

// Len is the length of the format's connection IDs, in bytes.
func (f Format) Len() int { return 1 + f.ServerIDLen + f.NonceLen }

// Codec writes and reads connection IDs of a format. It may be used by several goroutines.
type Codec struct {
	format Format
	block  cipher.Block // nil without a key
}

// New returns the codec of a format.
func New(f Format) (*Codec, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	c := &Codec{format: f}
	if len(f.Key) == 0 {
		return c, nil
	}
	var err error
	c.block, err = aes.NewCipher(f.Key)
	return c, err
}

// Len is the length of the connection IDs, in bytes.
func (c *Codec) Len() int { return 1 + c.content() }

func (c *Codec) content() int { return c.format.ServerIDLen + c.format.NonceLen }

// Encode returns the connection ID of a server, whose ID and a nonce have the format's lengths. The
// first byte tells the length, for devices that have to know it.
func (c *Codec) Encode(server, nonce []byte) []byte {
	if len(server) != c.format.ServerIDLen || len(nonce) != c.format.NonceLen {
		panic(fmt.Sprintf("quiclb: server ID of %d and nonce of %d bytes, the format's have %d and %d",
			len(server), len(nonce), c.format.ServerIDLen, c.format.NonceLen))
	}
	cid := make([]byte, c.Len())
	cid[0] = c.format.ID<<idShift | byte(c.content())
	content := cid[1:]
	copy(content[copy(content, server):], nonce)
	switch {
	case c.block == nil:
	case len(content) == oneBlock:
		c.block.Encrypt(content, content)
	default:
		h := halve(content)
		for pass := byte(1); pass <= passes; pass++ {
			h.pass(c.block, pass)
		}
		h.join(content)
	}
	return cid
}

// Decode returns the server ID in a connection ID. Bytes behind the format's length are not looked
// at, since short headers do not tell it.
func (c *Codec) Decode(cid []byte) (server []byte, err error) {
	if len(cid) < c.Len() || cid[0]>>idShift != c.format.ID {
		return nil, ErrUnroutable
	}
	content := append([]byte{}, cid[1:c.Len()]...)
	switch {
	case c.block == nil:
	case len(content) == oneBlock:
		c.block.Decrypt(content, content)
	default:
		h := halve(content)
		for pass := byte(passes); pass >= 1; pass-- {
			h.pass(c.block, pass)
		}
		h.join(content)
	}
	return content[:c.format.ServerIDLen], nil
}

// passes of the Feistel network (draft, section 4.3.2) that encrypts what is not one block.
const passes = 4

// halves of a content. Where its length is odd, each has half of the byte in the middle.
type halves struct {
	left, right []byte
	length      int // of the content
}

func halve(content []byte) halves {
	n := len(content)
	size := (n + 1) / 2
	h := halves{append([]byte{}, content[:size]...), append([]byte{}, content[n-size:]...), n}
	h.clip()
	return h
}

// clip clears the half bytes that are not theirs.
func (h halves) clip() {
	if h.length%2 == 1 {
		h.left[len(h.left)-1] &= 0xf0
		h.right[0] &= 0x0f
	}
}

// pass mixes one half into the other; done twice it undoes itself.
func (h halves) pass(block cipher.Block, pass byte) {
	from, into := h.left, h.right
	if pass%2 == 0 {
		from, into = into, from
	}
	var b [aes.BlockSize]byte
	copy(b[:], from)
	b[aes.BlockSize-2], b[aes.BlockSize-1] = byte(h.length), pass
	block.Encrypt(b[:], b[:])
	for i := range into {
		into[i] ^= b[i]
	}
	h.clip()
}

func (h halves) join(content []byte) {
	copy(content[h.length-len(h.right):], h.right)
	shared := h.left[len(h.left)-1]
	if h.length%2 == 1 {
		shared |= h.right[0]
	}
	copy(content, h.left)
	content[len(h.left)-1] = shared
}
