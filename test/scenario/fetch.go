package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Objects are fetched in chunks, one connection each: a connection stays on one edge, and each
// edge has a cache of its own.
const (
	fetchObjects = 1000
	fetchChunks  = 8
	fetchPasses  = 3
)

// fetched is one object as a real client got it.
type fetched struct {
	path   string
	status string
	proto  string // "1.1", "2", "3"
	edge   string
	hit    bool
}

// client fetches paths of one chunk over one connection and checks every body.
type client func(ctx context.Context, m *Main, vip, dir string, paths []string) ([]fetched, error)

// checkFetch fetches 1,000 objects over each protocol and family with clients that are not ours.
// The hit ratio is computed from the answers' order: an edge must hit exactly what it was asked
// for before.
func (m *Main) checkFetch(ctx context.Context, r *Recorder) error {
	for _, p := range []struct {
		name, version string
		get           client
	}{
		{"h1", "1.1", curl("--http1.1")},
		{"h2", "2", curl("--http2")},
		{"h3", "3", gtlsclient},
	} {
		for _, f := range []struct{ name, vip string }{{"v4", vip4}, {"v6", vip6}} {
			tag := p.name + "-" + f.name
			if err := m.fetchAll(ctx, r, tag, f.vip, p.version, p.get); err != nil {
				return fmt.Errorf("%s: %w", tag, err)
			}
		}
	}
	return nil
}

func (m *Main) fetchAll(ctx context.Context, r *Recorder, tag, vip, version string, get client) error {
	before, err := m.originObjects(ctx)
	if err != nil {
		return err
	}
	dir := m.lab.Path("fetch")
	defer os.RemoveAll(dir)
	seen := map[string]bool{} // edge and path that must be in its cache by now
	var good, want, hits uint64
	for range fetchPasses {
		for chunk := range fetchChunks {
			if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
				return err
			}
			got, err := get(ctx, m, vip, dir, chunkPaths(tag, chunk))
			if err != nil {
				return err
			}
			for _, f := range got {
				if f.status == "200" && f.proto == version && m.edge(f.edge) != nil {
					good++
				}
				if seen[f.edge+f.path] {
					want++
				}
				if f.hit {
					hits++
				}
				seen[f.edge+f.path] = true
			}
		}
	}
	after, err := m.originObjects(ctx)
	if err != nil {
		return err
	}
	total := uint64(fetchObjects * fetchPasses)
	r.Equal(tag+": objects fetched in full", total, good, "answers")
	r.Same(tag+": hit ratio", ratio(want, total), ratio(hits, total), "% (computed from who answered what before)")
	r.Equal(tag+": fetches of the origin", total-want, after-before, "requests")
	return nil
}

func ratio(n, of uint64) string { return strconv.FormatFloat(100*float64(n)/float64(of), 'f', 2, 64) }

func chunkPaths(tag string, chunk int) []string {
	const each = fetchObjects / fetchChunks
	var paths []string
	for i := range each {
		paths = append(paths, fmt.Sprintf("/o/%s/%d", tag, chunk*each+i))
	}
	return paths
}

func (m *Main) originObjects(ctx context.Context) (uint64, error) {
	var c originCounts
	err := readCounts(ctx, m.originCounts, &c)
	return c.Objects, err
}

// edge finds an edge by name.
func (m *Main) edge(name string) *Edge {
	for _, e := range m.edges {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// curl fetches with curl, verifying the certificate.
func curl(version string) client {
	return func(ctx context.Context, m *Main, vip, dir string, paths []string) ([]fetched, error) {
		var list strings.Builder
		for i, p := range paths {
			fmt.Fprintf(&list, "url = \"https://%s%s\"\noutput = \"%s/%d\"\n", edgeName, p, dir, i)
		}
		cfg, err := m.lab.WriteFile("curl.cfg", 0o644, []byte(list.String()))
		if err != nil {
			return nil, err
		}
		out, err := m.good.Output(ctx, "curl", "-sS", "-m", "60", version, "--cacert", m.cert,
			"--resolve", edgeName+":443:"+vip, "-K", cfg,
			"-w", `%{http_code}|%{http_version}|%header{cache-status}\n`)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(lines) != len(paths) {
			return nil, fmt.Errorf("curl told of %d transfers, want %d", len(lines), len(paths))
		}
		var got []fetched
		for i, line := range lines {
			fields := strings.SplitN(line, "|", 3)
			if len(fields) != 3 {
				return nil, fmt.Errorf("curl printed %q", line)
			}
			if err := sameBody(filepath.Join(dir, strconv.Itoa(i)), paths[i]); err != nil {
				return nil, err
			}
			f := fetched{path: paths[i], status: fields[0], proto: fields[1]}
			f.edge, f.hit = cacheStatus([]string{fields[2]})
			got = append(got, f)
		}
		return got, nil
	}
}

// gtlsclient fetches over HTTP/3 with ngtcp2's client. It names its downloads after the last
// element of the path and tells of headers in its debug output.
func gtlsclient(ctx context.Context, m *Main, vip, dir string, paths []string) ([]fetched, error) {
	args := []string{
		"gtlsclient", "--exit-on-all-streams-close", "--timeout=20s", "--no-quic-dump", "--no-http-dump",
		"--sni=" + edgeName, "--download=" + dir, vip, "443",
	}
	for _, p := range paths {
		args = append(args, "https://"+edgeName+p)
	}
	out, err := m.good.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	byStream := parseGTLS(out)
	if len(byStream) != len(paths) {
		return nil, fmt.Errorf("gtlsclient told of %d answers, want %d", len(byStream), len(paths))
	}
	var got []fetched
	for i, p := range paths {
		h, ok := byStream[4*i] // client-initiated bidirectional streams are 0, 4, 8 …
		if !ok {
			return nil, fmt.Errorf("gtlsclient told of no answer on stream %d", 4*i)
		}
		if err := sameBody(filepath.Join(dir, filepath.Base(p)), p); err != nil {
			return nil, err
		}
		f := fetched{path: p, status: h[":status"], proto: "3"}
		f.edge, f.hit = cacheStatus([]string{h["cache-status"]})
		got = append(got, f)
	}
	return got, nil
}

// sameBody compares a download with what the origin makes for that path.
func sameBody(file, path string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if string(b) != objectBody(path) {
		return fmt.Errorf("body of %s is not the origin's: %d bytes, want %d", path, len(b), len(objectBody(path)))
	}
	return nil
}
