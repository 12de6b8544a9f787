package maps

import (
	"math/bits"
	"net/netip"
)

// The hashes of bpf/include/hash.h; a test runs both sides against each other.

const (
	hashA = 0x9E3779B97F4A7C15
	hashB = 0xff51afd7ed558ccd
	hashC = 0xc4ceb9fe1a85ec53
)

func mix(h uint64) uint64 { return h ^ h>>32 }

// VIPHash is the place of a service in the VIP table, before buckets and displacement.
func VIPHash(seed [2]uint64, addr netip.Addr, port uint16, proto Protocol) uint64 {
	hi, lo := halves(addr)
	h := mix((bits.ReverseBytes64(hi)*hashB ^ bits.ReverseBytes64(lo) ^ seed[0]) * hashA)
	return mix((h ^ (uint64(port)<<8 | uint64(proto))) * hashA)
}

// SourceHash places a source in the rate cells and the verdict bits.
func SourceHash(seed [2]uint64, source netip.Addr) uint64 {
	n, _ := sourceNumber(source)
	return hashSource(seed, n)
}

// AggregateHash places the IPv4 /24 or IPv6 /48 of a source in the rate cells.
func AggregateHash(seed [2]uint64, source netip.Addr) uint64 {
	n, six := sourceNumber(source)
	if six {
		return hashSource(seed, n>>16)
	}
	return hashSource(seed, n>>8)
}

// ShareHash places that part of it there that has a share: the address, or the IPv6 /56.
func ShareHash(seed [2]uint64, source netip.Addr) uint64 {
	n, six := sourceNumber(source)
	if six {
		return hashSource(seed, n>>8)
	}
	return hashSource(seed, n)
}

const hashNetwork = 1 << 40

// NetworkHash places a network there, by the number of its autonomous system.
func NetworkHash(seed [2]uint64, asn uint32) uint64 {
	return hashSource(seed, hashNetwork|uint64(asn))
}

// NetworkShareHash places the part of a network there that a source is of: the /24s or /48s that a hash puts together.
func NetworkShareHash(seed [2]uint64, asn uint32, source netip.Addr) uint64 {
	return hashSource(seed, hashNetwork<<1|uint64(asn)<<8|AggregateHash(seed, source)>>56)
}

func sourceNumber(source netip.Addr) (n uint64, six bool) {
	n, lo := halves(source)
	if source.Unmap().Is4() {
		return lo & 0xffffffff, false
	}
	return n, true
}

func hashSource(seed [2]uint64, n uint64) uint64 {
	return mix((mix((n^seed[0])*hashB) ^ seed[1]) * hashA)
}

// FlowHash is SipHash-1-3 of a flow. The ports of fragments and of protocols other than TCP and
// UDP are 0. It is keyed by the site's secret, so that all edges of a site agree.
func FlowHash(secret [2]uint64, src, dst netip.AddrPort, proto Protocol) uint64 {
	ports := uint64(src.Port())<<24 | uint64(dst.Port())<<8 | uint64(proto)
	shi, slo := halves(src.Addr())
	dhi, dlo := halves(dst.Addr())
	if src.Addr().Unmap().Is4() {
		return sipHash(secret, slo<<32|dlo&0xffffffff, ports|13<<56)
	}
	return sipHash(secret, shi, slo, dhi, dlo, ports|37<<56)
}

// FlowRow is the row of a flow in its backend set's table.
func FlowRow(flow uint64) int { return int((flow & 0xffffffff) * RowCount >> 32) }

const tagChance = 0x8000

// FlowTag is the keyed mark of a tunnelled packet, which may be a second chance, and has gone from site to
// site so often.
func FlowTag(flow, secret uint64, chance bool, hops int) uint16 {
	flow ^= secret ^ uint64(hops)*hashC
	if chance {
		return max(uint16(flow*hashB>>49), 1) | tagChance
	}
	return max(uint16(flow*hashA>>49), 1)
}

// sipHash is SipHash-1-3 (Aumasson, Bernstein 2012) of a message in words, the last of which has
// the length in its highest byte.
func sipHash(key [2]uint64, words ...uint64) uint64 {
	v0, v1 := key[0]^0x736f6d6570736575, key[1]^0x646f72616e646f6d
	v2, v3 := key[0]^0x6c7967656e657261, key[1]^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	absorb := func(w uint64) {
		v3 ^= w
		round()
		v0 ^= w
	}
	for _, w := range words {
		absorb(w)
	}
	v2 ^= 0xff
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}
