// Package fec repairs lost packets of real-time flows with Reed-Solomon parity, where waiting for a
// retransmission would be too late. Packets go out as they are, each with a trailer, and parity
// follows a block of them, as RFC 6865 lays down for m = 8; a receiver hands packets on as
// they come and rebuilds those that are missing as soon as it has any k of a block.
//
// It is made of pure functions on bytes: the relay alone has sockets.
package fec

import (
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// MaxSymbols is how many symbols a block may have at most, source and repair: 2^m - 1 (RFC 6865, section 8).
const MaxSymbols = 255

// Params are the shape of a block: K packets, and M of parity.
type Params struct {
	K int `json:"k"`
	M int `json:"m"`
}

// Overhead is the share of parity: packets of it for each packet.
func (p Params) Overhead() float64 { return float64(p.M) / float64(p.K) }

func (p Params) String() string { return fmt.Sprintf("%d+%d", p.K, p.M) }

func (p Params) validate() error {
	if p.K < 1 || p.M < 0 || p.K+p.M > MaxSymbols {
		return fmt.Errorf("block of %s: want at least one packet and at most %d with parity", p, MaxSymbols)
	}
	return nil
}

// GF(2^8) by x^8+x^4+x^3+x^2+1, as RFC 5510 section 8.1 has it: powers and logarithms of alpha = 2.
type field struct {
	pow [255]byte
	log [256]int
}

var gf = sync.OnceValue(func() *field {
	f := new(field)
	x := 1
	for i := range f.pow {
		f.pow[i], f.log[x] = byte(x), i
		if x <<= 1; x > 0xff {
			x ^= 0x11d
		}
	}
	return f
})

func (f *field) mul(a, b byte) byte {
	if a == 0 || b == 0 {
		return 0
	}
	return f.pow[(f.log[a]+f.log[b])%255]
}

// div takes a b that is not zero.
func (f *field) div(a, b byte) byte {
	if a == 0 {
		return 0
	}
	return f.pow[(f.log[a]+255-f.log[b])%255]
}

// matrix has a row of k coefficients for each packet of parity: a systematic code at the points 0, 1, alpha,
// alpha^2 …, the one of Rizzo (1997), which zfec and OpenFEC use. Row r depends on k and r
// alone, so blocks with less parity are prefixes of those with more. k^2 + k*m steps.
func matrix(p Params) [][]byte {
	f := gf()
	point := func(i int) byte {
		if i == 0 {
			return 0
		}
		return f.pow[i-1]
	}
	// Lagrange: the basis polynomial of source c at x is P(x) / (x - c) / P'(c).
	slope := make([]byte, p.K)
	for c := range slope {
		slope[c] = 1
		for o := range p.K {
			if o != c {
				slope[c] = f.mul(slope[c], point(c)^point(o))
			}
		}
	}
	rows := make([][]byte, p.M)
	for r := range rows {
		x, all := point(p.K+r), byte(1)
		for c := range p.K {
			all = f.mul(all, x^point(c))
		}
		rows[r] = make([]byte, p.K)
		for c := range rows[r] {
			rows[r][c] = f.div(all, f.mul(x^point(c), slope[c]))
		}
	}
	return rows
}

// codes keeps codes that were used, since making one takes longer than using it. It is bounded: a forged k makes
// a receiver ask for any.
type codes struct {
	made map[Params]reedsolomon.Encoder
}

// maxCodes of the largest shape take 64 KiB each.
const maxCodes = 64

func (c *codes) get(p Params) (reedsolomon.Encoder, error) {
	if rs, ok := c.made[p]; ok {
		return rs, nil
	}
	// The library keeps an inverted matrix for each pattern of losses unless told not to: without bound.
	rs, err := reedsolomon.New(p.K, p.M, reedsolomon.WithCustomMatrix(matrix(p)),
		reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(false))
	if err != nil {
		return nil, fmt.Errorf("code of %s: %w", p, err)
	}
	if c.made == nil || len(c.made) >= maxCodes {
		c.made = map[Params]reedsolomon.Encoder{}
	}
	c.made[p] = rs
	return rs, nil
}
