package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// ErrDown means that no daemon answers at the socket: root may edit the pinned maps instead.
var ErrDown = errors.New("bermd is not running")

// Error is how the daemon refuses: what is wrong, and what to do about it.
type Error struct {
	Status  int    `json:"-"` // HTTP status
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
}

// Error returns the message, with the hint in parentheses.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}

// Client speaks the admin API. It implements Tables, and so stands in for Local.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon behind a socket. Nothing is opened before the first call.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close lets go of idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Status asks how the daemon and its kernel half are.
func (c *Client) Status(ctx context.Context) (out Status, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/status", nil, &out)
}

// Reload makes the daemon read its file again; a bad file is refused and changes nothing.
func (c *Client) Reload(ctx context.Context) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/reload", struct{}{}, &out)
}

// Upgrade makes the daemon hand over to the program that is installed now; one that fails to start changes nothing.
func (c *Client) Upgrade(ctx context.Context) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/upgrade", struct{}{}, &out)
}

// Purge makes the cache forget an object with all its variants.
func (c *Client) Purge(ctx context.Context, p Purge) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/purge", p, &out)
}

// Cache asks for the state of the object cache.
func (c *Client) Cache(ctx context.Context) (out Cache, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/cache", nil, &out)
}

// LiveStreams asks how the live streams and their subscribers are.
func (c *Client) LiveStreams(ctx context.Context) (out []LiveStream, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/fec/streams", nil, &out)
}

// Relays asks how the relays with forward error correction are.
func (c *Client) Relays(ctx context.Context) (out []Relay, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/fec/relays", nil, &out)
}

// Top asks for rates over the last seconds.
func (c *Client) Top(ctx context.Context, seconds int) (out Top, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/top?seconds="+strconv.Itoa(seconds), nil, &out)
}

// Order asks something of a backend, at once.
func (c *Client) Order(ctx context.Context, o Order) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/steer/order", o, &out)
}

// Plan asks what a change of rows would mean.
func (c *Client) Plan(ctx context.Context, p PlanRequest) (out Plan, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/steer/plan", p, &out)
}

// Spill changes the share of a service's new flows that begins at another site, at once.
func (c *Client) Spill(ctx context.Context, s Spill) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/steer/spill", s, &out)
}

// VIPs lists the services with their counters.
func (c *Client) VIPs(ctx context.Context) (out []VIP, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/vips", nil, &out)
}

// AddVIP adds a service, or changes the policies of one.
func (c *Client) AddVIP(ctx context.Context, v VIP) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/vips", v, &out)
}

// RemoveVIP removes the service of a name.
func (c *Client) RemoveVIP(ctx context.Context, name string) (out Changes, err error) {
	return out, c.call(ctx, http.MethodDelete, "/v1/vips?name="+url.QueryEscape(name), nil, &out)
}

// Rates lists the rate classes.
func (c *Client) Rates(ctx context.Context) (out []RateClass, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/rates", nil, &out)
}

// SetRate adds or changes a rate class.
func (c *Client) SetRate(ctx context.Context, r RateClass) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/rates", r, &out)
}

// CC tells what TCP connections begin with.
func (c *Client) CC(ctx context.Context) (out CC, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/cc", nil, &out)
}

// SetCCProfile adds or changes a profile.
func (c *Client) SetCCProfile(ctx context.Context, p CCProfile) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/cc/profiles", p, &out)
}

// SetCC gives a prefix a profile.
func (c *Client) SetCC(ctx context.Context, r CCRule) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/cc/prefixes", r, &out)
}

// RemoveCC takes a prefix's profile away.
func (c *Client) RemoveCC(ctx context.Context, prefix netip.Prefix) (out Changes, err error) {
	return out, c.call(ctx, http.MethodDelete, "/v1/cc/prefixes?prefix="+url.QueryEscape(prefix.String()), nil, &out)
}

// ExplainCC tells what an address's next TCP connection begins with, and why.
func (c *Client) ExplainCC(ctx context.Context, ip netip.Addr) (out CCChoice, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/cc/explain?ip="+url.QueryEscape(ip.String()), nil, &out)
}

// GeoPolicies lists the geo policies.
func (c *Client) GeoPolicies(ctx context.Context) (out []GeoPolicy, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/geo/policies", nil, &out)
}

// SetGeoPolicy adds or changes a geo policy.
func (c *Client) SetGeoPolicy(ctx context.Context, p GeoPolicy) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/geo/policies", p, &out)
}

// LoadGeo compiles databases into the prefix table and switches to it.
func (c *Client) LoadGeo(ctx context.Context, l GeoLoad) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/geo/load", l, &out)
}

// TestGeo tells what is known and decided about a source.
func (c *Client) TestGeo(ctx context.Context, ip netip.Addr) (out GeoTest, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/geo/test?ip="+url.QueryEscape(ip.String()), nil, &out)
}

// Verdicts lists the verdicts in force.
func (c *Client) Verdicts(ctx context.Context) (out []Verdict, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/verdicts", nil, &out)
}

// AddVerdict decides about a source.
func (c *Client) AddVerdict(ctx context.Context, v Verdict) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/verdicts", v, &out)
}

// RemoveVerdict forgets the decision about a source; vip "" names the one for all VIPs.
func (c *Client) RemoveVerdict(ctx context.Context, source netip.Addr, vip string) (out Changes, err error) {
	q := url.Values{"source": {source.String()}, "vip": {vip}}
	return out, c.call(ctx, http.MethodDelete, "/v1/verdicts?"+q.Encode(), nil, &out)
}

// ChangeVerdicts makes many changes as the guard, whose verdicts never replace an operator's.
func (c *Client) ChangeVerdicts(ctx context.Context, changes []VerdictChange) (out VerdictResults, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/verdicts/batch", changes, &out)
}

// ShadowRules lists what is counted and not enforced.
func (c *Client) ShadowRules(ctx context.Context) (out []ShadowRule, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/shadow", nil, &out)
}

// SetShadow promotes a rule to being enforced, or puts it in shadow.
func (c *Client) SetShadow(ctx context.Context, change ShadowChange) (out Changes, err error) {
	return out, c.call(ctx, http.MethodPut, "/v1/shadow", change, &out)
}

// ExplainSteer tells where a flow's packets go, and why.
func (c *Client) ExplainSteer(ctx context.Context, f Flow) (out Steering, err error) {
	q := url.Values{"protocol": {f.Protocol}, "cid": {f.CID}, "long": {strconv.FormatBool(f.Long)}, "ufrag": {f.Ufrag}}
	if f.Source.IsValid() || f.Destination.IsValid() {
		q.Set("source", f.Source.String())
		q.Set("destination", f.Destination.String())
	}
	return out, c.call(ctx, http.MethodGet, "/v1/steer/explain?"+q.Encode(), nil, &out)
}

// MintUfrag makes an ICE username fragment that names a backend, "" for the daemon's own host.
func (c *Client) MintUfrag(ctx context.Context, backend string) (out Ufrag, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/steer/ufrag?"+url.Values{"backend": {backend}}.Encode(), nil, &out)
}

// Drops asks for the refused packets by reason.
func (c *Client) Drops(ctx context.Context) (out Drops, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/drops", nil, &out)
}

// maxAnswer bounds what one answer may hold: 64 Ki verdicts of 200 bytes, and room.
const maxAnswer = 64 << 20

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://bermd"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 != 2 {
		e := &Error{Status: resp.StatusCode}
		if answer.Decode(e) != nil || e.Message == "" {
			e.Message = "bermd answered " + resp.Status
		}
		return e
	}
	if err := answer.Decode(out); err != nil {
		return fmt.Errorf("read bermd's answer: %w", err)
	}
	return nil
}

// explain translates what a dial says into what an operator can do.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens at %s (systemctl start bermd, or name another socket)", ErrDown, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use %s: run as root, or join the group berm (usermod -aG berm $USER) and log in again: %w", c.socket, fs.ErrPermission)
	}
	return fmt.Errorf("ask bermd at %s: %w", c.socket, err)
}
