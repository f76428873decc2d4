// ComfyUI hides all texts of a graph that is seen from afar, as it is when it has just been opened from the templates.
// The notes of this pack's examples stay: they say what to do first, in letters that are large enough.
import { app } from "../../scripts/app.js"

const MARK = "reins_shown_from_afar" // a property of these notes. Other notes stay as ComfyUI has them

app.registerExtension({
    name: "Reins.NotesFromAfar",
    loadedGraphNode(node) {
        if (!node.properties?.[MARK]) return
        for (const widget of node.widgets ?? []) {
            if (widget.options) widget.options.hideOnZoom = false
        }
    },
})
