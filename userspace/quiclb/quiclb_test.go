package quiclb

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectors are those of the draft's appendix B. The low bits of their first byte are the length.
var vectors = []struct {
	id                      uint8
	key, server, nonce, cid string
}{
	{0, "", "c4605e", "4504cc4f", "07c4605e4504cc4f"},
	{0, "8f95f09245765f80256934e50c66207f", "ed793a", "ee080dbf", "0720b1d07b359d3c"},
	{1, "8f95f09245765f80256934e50c66207f", "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"},
	{2, "8f95f09245765f80256934e50c66207f", "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"},
	{0, "8f95f09245765f80256934e50c66207f", "ed793a51d49b8f5fab", "ee080dbf48c0d1e55d", "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc"},
	{0, "fdf726a9893ec05c0632d3956680baf0", "31441a", "9c69c275", "0767947d29be054a"},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		server, nonce := mustHex(t, v.server), mustHex(t, v.nonce)
		c, err := New(Format{ID: v.id, ServerIDLen: len(server), NonceLen: len(nonce), Key: mustHex(t, v.key)})
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(c.Encode(server, nonce)); got != v.cid {
			t.Errorf("server %s, nonce %s: %s, want %s", v.server, v.nonce, got, v.cid)
		}
		if got, err := c.Decode(append(mustHex(t, v.cid), 1, 2, 3)); err != nil || !bytes.Equal(got, server) {
			t.Errorf("%s: server %x, %v, want %s", v.cid, got, err, v.server)
		}
	}
}

// Every pair of lengths that the draft allows, with and without a key.
func TestLengths(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = r.Read(b) // never fails
		return b
	}
	for server := minServerID; server <= maxServerID; server++ {
		for nonce := minNonce; server+nonce <= maxContent; nonce++ {
			for _, key := range [][]byte{nil, random(16)} {
				c, err := New(Format{ID: 5, ServerIDLen: server, NonceLen: nonce, Key: key})
				if err != nil {
					t.Fatal(err)
				}
				s := random(server)
				cid := c.Encode(s, random(nonce))
				if len(cid) != c.Len() || cid[0] != 5<<5|byte(server+nonce) {
					t.Fatalf("%d+%d: connection ID %x", server, nonce, cid)
				}
				if got, err := c.Decode(cid); err != nil || !bytes.Equal(got, s) {
					t.Errorf("%d+%d: server %x, %v, want %x", server, nonce, got, err, s)
				}
				if key != nil && bytes.Contains(cid, s) && server > 2 {
					t.Errorf("%d+%d: server %x is readable in %x", server, nonce, s, cid)
				}
				for _, bad := range [][]byte{nil, cid[:len(cid)-1], append([]byte{cid[0] ^ 1<<5}, cid[1:]...)} {
					if _, err := c.Decode(bad); !errors.Is(err, ErrUnroutable) {
						t.Errorf("%x: %v, want %v", bad, err, ErrUnroutable)
					}
				}
			}
		}
	}
}

func TestFormats(t *testing.T) {
	for want, f := range map[string]Format{
		"id: 7":                 {ID: 7, ServerIDLen: 1, NonceLen: 4},
		"server_id_length: 0":   {ServerIDLen: 0, NonceLen: 4},
		"server_id_length: 16":  {ServerIDLen: 16, NonceLen: 4},
		"nonce_length: 3 bytes": {ServerIDLen: 1, NonceLen: 3},
		"at most 19":            {ServerIDLen: 10, NonceLen: 10},
		"key: 15 bytes":         {ServerIDLen: 1, NonceLen: 4, Key: make([]byte, 15)},
	} {
		if _, err := New(f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", f, err, want)
		}
	}
}

// FuzzDecode feeds any bytes to any format: no panic; and a format whose server ID takes as much as it
// may of the same content finds the same bytes at its start.
func FuzzDecode(f *testing.F) {
	for _, v := range vectors {
		f.Add(mustHex(f, v.cid), v.id, len(v.server)/2, len(v.nonce)/2, mustHex(f, v.key))
	}
	f.Fuzz(func(t *testing.T, cid []byte, id uint8, server, nonce int, key []byte) {
		c, err := New(Format{ID: id, ServerIDLen: server, NonceLen: nonce, Key: key})
		if err != nil {
			return
		}
		got, err := c.Decode(cid)
		if err != nil {
			return
		}
		most := min(server+nonce-minNonce, maxServerID)
		whole, err := New(Format{ID: id, ServerIDLen: most, NonceLen: server + nonce - most, Key: key})
		if err != nil {
			t.Fatal(err)
		}
		long, err := whole.Decode(cid)
		if err != nil || !bytes.HasPrefix(long, got) && !bytes.HasPrefix(got, long) {
			t.Errorf("%x: server %x, and with a longer server ID %x, %v", cid, got, long, err)
		}
	})
}
