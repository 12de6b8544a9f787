package scenario

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// CertRotation is the main topology with certificates in a directory, and ticket keys that both edges see.
type CertRotation struct {
	*Main
	dir    string // of the certificates
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	issued int
}

func upCertRotation(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	c := &CertRotation{Main: newMain(lab, opts), dir: lab.Path("tls")}
	c.makeCert = c.prepare
	return c, c.up(ctx)
}

// Steps are run in this order.
func (c *CertRotation) Steps() []Step {
	return []Step{
		{Name: "certificates rotate under load", Run: c.checkRotation, Loud: true},
		{Name: "sessions on every edge", Run: c.checkSessions},
		{Name: "audit", Run: c.checkAudit, Loud: true},
	}
}

// prepare makes an authority, a first certificate, and what the edges' files say of both.
func (c *CertRotation) prepare(ctx context.Context) (err error) {
	if err := c.makeCertificate(ctx); err != nil { // for the site's secret
		return err
	}
	tickets := c.lab.Path("tickets")
	for path, mode := range map[string]os.FileMode{c.dir: 0o750, tickets: 0o700} {
		if err := errors.Join(os.Mkdir(path, mode), os.Chown(path, daemonUser, daemonUser)); err != nil {
			return err
		}
	}
	if c.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	c.ca = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c.ca, c.ca, &c.caKey.PublicKey, c.caKey)
	if err != nil {
		return err
	}
	if c.cert, err = c.lab.WriteFile("ca.pem", 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return err
	}
	c.tls = fmt.Sprintf("{dir: %s, tickets: {dir: %s}, early_data: {enabled: true}}", c.dir, tickets)
	_, err = c.renew()
	return err
}

// issue makes a certificate that ends at a time of its own, by which it is told from others.
func (c *CertRotation) issue() (cert, key []byte, end time.Time, err error) {
	c.issued++
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, end, err
	}
	end = time.Now().Add(60*24*time.Hour + time.Duration(c.issued)*time.Minute).Truncate(time.Second)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(c.issued) + 1), Subject: pkix.Name{CommonName: edgeName}, DNSNames: []string{edgeName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.ca, &priv.PublicKey, c.caKey)
	if err != nil {
		return nil, nil, end, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, end, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), end, nil
}

// renew writes a new certificate over the old one, a half after the other, as careless tools do.
func (c *CertRotation) renew() (end time.Time, err error) {
	cert, key, end, err := c.issue()
	if err != nil {
		return end, err
	}
	return end, errors.Join(c.put("www.crt", cert), c.put("www.key", key))
}

func (c *CertRotation) put(name string, text []byte) error {
	path := filepath.Join(c.dir, name)
	return errors.Join(os.WriteFile(path, text, 0o640), os.Chown(path, 0, daemonUser))
}

// awaitEnd waits until every edge serves the certificate that ends then.
func (c *CertRotation) awaitEnd(ctx context.Context, end time.Time) error {
	return rig.Until(ctx, 20*time.Second, "the edges serve a new certificate", func() (bool, error) {
		for _, e := range c.edges {
			out, err := e.node.Run(ctx, "curl", "-sf", "-m", "5", "http://127.0.0.1:9190/metrics")
			if err != nil {
				return false, ctx.Err()
			}
			var got float64
			for line := range strings.Lines(out) {
				if value, ok := strings.CutPrefix(line, `berm_certificate_expiry_seconds{name="`+edgeName+`"} `); ok {
					if got, err = strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil {
						return false, err
					}
				}
			}
			if int64(got) != end.Unix() {
				return false, nil
			}
		}
		return true, nil
	})
}

const (
	rotations  = 5
	handshakes = 200 // of each kind of client, at least
)

// checkRotation renews the certificate again and again, and puts a key there that does not fit.
func (c *CertRotation) checkRotation(ctx context.Context, r *Recorder) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done atomic.Bool
	var wg sync.WaitGroup
	var h2, h3, curl loadSum
	for sum, round := range map[*loadSum]func(context.Context, *loadSum) error{
		&h2: c.reconnectRound, &curl: c.curlRound,
		&h3: func(ctx context.Context, sum *loadSum) error {
			return c.probeRound(ctx, sum, "--proto", "h3", "--reconnect")
		},
	} {
		wg.Go(func() {
			for sum.err == nil && !done.Load() {
				if sum.err = round(ctx, sum); sum.err != nil {
					cancel()
				}
				sum.done.Store(sum.requests)
			}
		})
	}
	rounds := 0
	err := func() error {
		for ctx.Err() == nil && (rounds < rotations || h2.done.Load() < handshakes || h3.done.Load() < handshakes || curl.done.Load() < 10) {
			end, err := c.renew()
			if err == nil {
				err = c.awaitEnd(ctx, end)
			}
			if err != nil {
				return err
			}
			rounds++
		}
		return c.breakPair(ctx)
	}()
	done.Store(true)
	wg.Wait()
	if err := errors.Join(err, h2.err, h3.err, curl.err); err != nil {
		return err
	}
	r.AtLeast("certificates taken by both edges, without a reload", rotations, float64(rounds), "certificates")
	for name, sum := range map[string]*loadSum{"over TCP (h2)": &h2, "over QUIC (h3)": &h3} {
		r.AtLeast("handshakes "+name+" meanwhile", handshakes, float64(sum.requests), "handshakes")
		r.Equal("handshakes "+name+" that failed", 0, sum.lost, "handshakes "+failures(sum.failures))
	}
	r.AtLeast("clients that check the certificate (curl)", 10, float64(curl.requests), "clients")
	r.Equal("clients that refused one", 0, curl.lost, "clients "+failures(curl.failures))
	return nil
}

// breakPair puts another certificate's key in place, and then the right one.
func (c *CertRotation) breakPair(ctx context.Context) error {
	right, err := os.ReadFile(filepath.Join(c.dir, "www.key"))
	if err != nil {
		return err
	}
	_, wrong, _, err := c.issue()
	if err != nil {
		return err
	}
	if err := errors.Join(c.put("www.key", wrong), c.awaitProblem(ctx, true)); err != nil {
		return err
	}
	return errors.Join(c.put("www.key", right), c.awaitProblem(ctx, false))
}

// awaitProblem waits until every edge complains of the key, or none does.
func (c *CertRotation) awaitProblem(ctx context.Context, there bool) error {
	return rig.Until(ctx, 20*time.Second, fmt.Sprintf("the edges complain of a wrong key: %v", there), func() (bool, error) {
		for _, e := range c.edges {
			var s control.Status
			if err := e.ask(ctx, &s, "status"); err != nil {
				return false, ctx.Err()
			}
			if strings.Contains(strings.Join(s.Problems, "\n"), "www.key is not the key of") != there {
				return false, nil
			}
		}
		return true, nil
	})
}

// curlRound has curl come five times, which checks the certificate each time.
func (c *CertRotation) curlRound(ctx context.Context, sum *loadSum) error {
	for i := range 5 {
		vip := []string{vip4, "[" + vip6 + "]"}[i%2]
		out, err := c.good.Run(ctx, "curl", "-sS", "-m", "10", "--cacert", c.cert, "--resolve", edgeName+":443:"+vip, "-o", "/dev/null", "-w", "%{http_code}", "https://"+edgeName+"/o/rotation/1")
		if ctx.Err() != nil {
			return ctx.Err()
		}
		sum.requests++
		if strings.TrimSpace(out) == "200" {
			continue
		}
		sum.lose(fmt.Sprintf("%.80s %v", out, err), 1)
	}
	return nil
}

const resumptions = 16 // each is on one of two edges by chance: on one alone once in 32,768

// checkSessions gets a ticket from one edge, and resumes with it wherever the router sends it.
func (c *CertRotation) checkSessions(ctx context.Context, r *Recorder) error {
	session := c.lab.Path("session")
	openssl := func(args string) (string, error) {
		return c.good.Run(ctx, "sh", "-c", fmt.Sprintf(`printf 'GET /o/1 HTTP/1.0\r\nHost: %s\r\n\r\n' | timeout 20 openssl s_client -connect %s:443 -servername %s -ign_eof %s 2>&1`, edgeName, vip4, edgeName, args))
	}
	if out, err := openssl("-sess_out " + session); err != nil {
		return fmt.Errorf("%w: %.300s", err, out)
	}
	before, err := c.resumed(ctx)
	if err != nil {
		return err
	}
	var reused uint64
	for range resumptions {
		out, err := openssl("-sess_in " + session)
		if err != nil {
			return fmt.Errorf("%w: %.300s", err, out)
		}
		if strings.Contains(out, "Reused, TLSv1.3") {
			reused++
		}
	}
	after, err := c.resumed(ctx)
	if err != nil {
		return err
	}
	r.Equal(fmt.Sprintf("of %d connections that openssl resumed (one ticket)", resumptions), resumptions, reused, "connections")
	for i, e := range c.edges {
		r.AtLeast(e.Name+": of those", 1, float64(after[i]-before[i]), "connections")
	}
	return nil
}

func (c *CertRotation) resumed(ctx context.Context) (out []uint64, err error) {
	for _, e := range c.edges {
		var s control.Status
		if err := e.ask(ctx, &s, "status"); err != nil {
			return nil, err
		}
		out = append(out, s.TLS.TCP.Resumed)
	}
	return out, nil
}

// checkAudit asks the service as a client does.
func (c *CertRotation) checkAudit(ctx context.Context, r *Recorder) error {
	bin, err := rig.Binary(c.opts.Bin, "berm")
	if err != nil {
		return err
	}
	out, err := c.good.Run(ctx, bin, "tls", "audit", vipPort(vip4, 443), "--name", edgeName, "--ca", c.cert, "--timeout", "20s")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for what, want := range map[string]string{"protocols": "ok TLS 1.2, TLS 1.3", "groups": "ok X25519MLKEM768", "chain": "ok " + edgeName, "h3": "ok h3, resumption"} {
		got := ""
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, what+" "); ok {
				got = strings.TrimSpace(rest)
			}
		}
		r.Same("audit of the service: "+what, want, got[:min(len(got), len(want))], "")
	}
	return nil
}
