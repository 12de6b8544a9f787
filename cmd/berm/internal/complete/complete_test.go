package complete

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

type grammar struct {
	JSON bool   `help:"Machine-readable."`
	Sock string `complete:":files"`
	VIP  struct {
		Add struct {
			Name  string `arg:"" complete:"vip"`
			Addr  string `arg:""`
			Geo   string `complete:"geo"`
			Quiet bool   `negatable:""`
		} `cmd:"" help:"Add one."`
		Rm struct {
			Names []string `arg:"" complete:"vip"`
		} `cmd:"" help:"Remove one."`
	} `cmd:"" name:"vip" help:"Services."`
	Verdict struct {
		Action string `enum:"drop,allow" default:"drop" short:"a"`
		Dir    string `arg:"" complete:":dirs"`
	} `cmd:"" help:"Decisions."`
	Hidden struct{} `cmd:"" hidden:""`
}

func TestCandidates(t *testing.T) {
	p, err := kong.New(&grammar{}, kong.Name("berm"))
	if err != nil {
		t.Fatal(err)
	}
	names := func(kind string) []string {
		return map[string][]string{"vip": {"web", "web6", "dns"}, "geo": {"default"}}[kind]
	}
	for _, c := range []struct{ words, want string }{
		{"", "vip verdict"},
		{"v", "vip verdict"},
		{"ver", "verdict"},
		{"h", ""},
		{"vip ", "add rm"},
		{"vip a", "add"},
		{"vip add ", "web web6 dns"},
		{"vip add w", "web web6"},
		{"vip add web ", ""},
		{"vip add --geo ", "default"},
		{"vip add --geo=", "--geo=default"},
		{"vip add --geo=x", ""},
		{"vip add --geo default ", "web web6 dns"},
		{"vip add --geo=default web", "web web6"},
		{"vip --json add d", "dns"},
		{"--json vip add d", "dns"},
		{"--sock x vip add d", "dns"},
		{"--sock=x vip add d", "dns"},
		{"vip add --q", "--quiet"},
		{"vip add --no", "--no-quiet"},
		{"vip add --j", "--json"},
		{"vip rm web w", "web web6"},
		{"vip rm -- -", ""},
		{"vip rm -- w", "web web6"},
		{"verdict --action ", "drop allow"},
		{"verdict -a al", "allow"},
		{"verdict --action=d", "--action=drop"},
		{"verdict ", ":dirs"},
		{"--sock ", ":files"},
		{"nonsense ", ""},
	} {
		var got []string
		for _, w := range Candidates(p.Model, strings.Split(c.words, " "), names) {
			w, _, _ = strings.Cut(w, "\t")
			got = append(got, w)
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%q: %q, want %q", c.words, g, c.want)
		}
	}
	if got := Candidates(p.Model, nil, names); len(got) == 0 || got[0] != "vip\tServices." {
		t.Errorf("without a word: %q", got)
	}
}

func TestScript(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		s, err := Script(shell, "berm")
		if err != nil || strings.Contains(s, "PROGRAM") || !strings.Contains(s, Command) {
			t.Errorf("%s: %v\n%s", shell, err, s)
		}
	}
	if _, err := Script("tcsh", "berm"); err == nil || !strings.Contains(err.Error(), "bash, zsh or fish") {
		t.Errorf("tcsh: %v", err)
	}
}
