package fec

import (
	_ "embed"
	"html"
	"strings"
)

// PlayerFile is a file of the page that shows a stream.
type PlayerFile struct{ Type, Content string }

//go:embed player/index.html
var playerPage string

//go:embed player/fec.js
var playerDecoder string

//go:embed player/page.js
var playerScript string

// Player returns the file at a path below that of a stream; "" is the page itself.
func Player(stream, below string) (PlayerFile, bool) {
	const script = "text/javascript; charset=utf-8"
	switch below {
	case "":
		return PlayerFile{"text/html; charset=utf-8", strings.ReplaceAll(playerPage, "{{path}}", html.EscapeString(stream))}, true
	case "/fec.js":
		return PlayerFile{script, playerDecoder}, true
	case "/page.js":
		return PlayerFile{script, playerScript}, true
	}
	return PlayerFile{}, false
}
