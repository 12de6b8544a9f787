package scenario

import (
	"regexp"
	"strconv"
	"strings"
)

var gtlsHeader = regexp.MustCompile(`http: stream 0x([0-9a-f]+) \[([^:]*:?[^:]*): (.*)\]`)

// parseGTLS reads the response headers of each stream from gtlsclient's debug output, whose
// lines look like "http: stream 0x4 [cache-status: edge1; hit]".
func parseGTLS(out string) map[int]map[string]string {
	streams := map[int]map[string]string{}
	for line := range strings.Lines(out) {
		f := gtlsHeader.FindStringSubmatch(line)
		if f == nil {
			continue
		}
		id, err := strconv.ParseInt(f[1], 16, 64)
		if err != nil {
			continue
		}
		h := streams[int(id)]
		if h == nil {
			h = map[string]string{}
			streams[int(id)] = h
		}
		h[strings.ToLower(f[2])] = f[3]
	}
	return streams
}
