package flow

import (
	"strings"
	"testing"
)

func TestConnectionID(t *testing.T) {
	for _, c := range []struct {
		payload, cid string
		long         bool
		err          string
	}{
		{payload: "40 0800 02aa bbcc ddee ff00 0102\n0304", cid: "080002aabbccddeeff0001020304"},
		{payload: "40" + strings.Repeat("ab", 40), cid: strings.Repeat("ab", 20)},
		{payload: "c0000000010380aabb04ffffffff", cid: "80aabb", long: true},
		{payload: "c00000000100", cid: "", long: true},
		{payload: "c00000000103aabb", err: "end before the connection ID does", long: true},
		{payload: "c000000001", err: "end before the connection ID does", long: true},
		{payload: "", err: "is empty"},
		{payload: "40f", err: "want hex digits"},
	} {
		cid, long, err := ConnectionID(c.payload)
		if cid != c.cid || long != c.long || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v, %v, want %q, %v, %q", c.payload, cid, long, err, c.cid, c.long, c.err)
		}
	}
}

func FuzzConnectionID(f *testing.F) {
	f.Add("40 0800 02aa")
	f.Add("c0000000010380aabb04")
	f.Fuzz(func(t *testing.T, payload string) {
		if cid, long, err := ConnectionID(payload); err == nil && !long && len(cid) > 40 {
			t.Errorf("%q: %s", payload, cid)
		}
	})
}
