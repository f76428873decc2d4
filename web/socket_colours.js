// Colours for the socket types of this pack. ComfyUI draws every type that no palette names in the same grey or green.
// IPADAPTER is also a type of ComfyUI_IPAdapter_plus, so whatever a palette or another pack sets goes before.
import { app } from "../../scripts/app.js"

// As far apart as they can be, also for colour-blind eyes, from each other and from the types of ComfyUI, and readable
// on dark and on light nodes: tests/test_socket_colours.py measures this.
const COLOURS = {
    CONTROLNEXT: "#648c1e",
    IPADAPTER: "#fa0078",
    IMAGE_TOKENS: "#3c96a0",
    UNICON: "#dc00f0",
    H_DIRECTION: "#0082fa",
    FACE_EMBEDS: "#a06ebe",
}

// A palette that is chosen writes an empty text for each type that it does not name, and says so to nobody. So our
// colour is not written once, but is what a reader gets as long as nobody has written another.
function setDefault(table, type, colour) {
    let written = table[type]
    Object.defineProperty(table, type, {
        get: () => written || colour,
        set: (value) => { written = value },
        enumerable: true,
        configurable: true,
    })
}

// Nodes 2.0 take the colour of a socket from a property of the page. Palettes write it on an element, and `:where` has
// no weight in the cascade, so that any other rule wins too.
function addStyle() {
    const style = document.createElement("style")
    const lines = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
    style.textContent = `:where(:root) { ${lines.join(" ")} }`
    document.head.append(style)
}

app.registerExtension({
    name: "Reins.SocketColours",
    init() {
        const wires = app.canvas.constructor.link_type_colors
        const sockets = app.canvas.default_connection_color_byType
        for (const [type, colour] of Object.entries(COLOURS)) {
            setDefault(wires, type, colour)
            setDefault(sockets, type, colour)
        }
        addStyle()
    },
})
