package scenario

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
)

// flow is one TCP connection to the VIP's plain port, for asking one request after another.
type flow struct {
	conn  net.Conn
	r     *bufio.Reader
	limit time.Duration // of one request
}

// answer is what came back for a request.
type answer struct {
	status int
	edge   string // that answered
	hit    bool
	body   int // bytes
}

// openFlow connects from a node.
func (m *Main) openFlow(ctx context.Context, from *rig.Node, vip string, limit time.Duration) (*flow, error) {
	return m.openFlowAs(ctx, from, &net.Dialer{Timeout: limit}, vip, limit)
}

func (m *Main) openFlowAs(ctx context.Context, from *rig.Node, d *net.Dialer, vip string, limit time.Duration) (*flow, error) {
	c, err := from.Dial(ctx, d, "tcp", vipPort(vip, 80))
	if err != nil {
		return nil, err
	}
	return &flow{conn: c, r: bufio.NewReader(c), limit: limit}, nil
}

func (f *flow) close() { _ = f.conn.Close() } // whatever was wanted of it has been read

// get asks for a path and reads the whole answer.
func (f *flow) get(path string) (answer, error) {
	if err := f.conn.SetDeadline(time.Now().Add(f.limit)); err != nil {
		return answer{}, err
	}
	if _, err := fmt.Fprintf(f.conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, edgeName); err != nil {
		return answer{}, err
	}
	resp, err := http.ReadResponse(f.r, nil)
	if err != nil {
		return answer{}, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: resp.StatusCode, body: int(n)}
	a.edge, a.hit = cacheStatus(resp.Header.Values("Cache-Status"))
	return a, nil
}

// cacheStatus reads who answered, and whether from its cache, from Cache-Status (RFC 9211):
// the last member is the cache nearest to us.
func cacheStatus(values []string) (edge string, hit bool) {
	members := strings.Split(strings.Join(values, ","), ",")
	params := strings.Split(members[len(members)-1], ";")
	for _, p := range params[1:] {
		hit = hit || strings.TrimSpace(p) == "hit"
	}
	return strings.Trim(strings.TrimSpace(params[0]), `"`), hit
}
