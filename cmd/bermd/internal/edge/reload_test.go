package edge

import (
	"slices"
	"strings"
	"testing"

	"github.com/bermedge/berm/userspace/config"
)

// A file that is as it was names databases that may not be: a reload reads them, and says so.
func TestDifferences(t *testing.T) {
	plain, geo := config.Default(), config.Default()
	geo.Geo.Databases = []string{"/var/lib/berm/geo.mmdb"}
	for _, c := range []struct {
		cfg  config.Config
		want bool
	}{{plain, false}, {geo, true}} {
		got := (&Edge{}).differences(&c.cfg, &c.cfg, nil)
		if read := slices.Contains(got, "the geo databases were read again"); read != c.want || !strings.HasPrefix(got[0], "the file is as it was") {
			t.Errorf("%q", got)
		}
	}
}
