'use strict';

/* A graph opens with the curves of one machine; the buttons under "machine" add the others. asv opens it with all.
   `one_machine_of`, {benchmark: machine}, stands in the page. */
$(document).ready(function() {
    var register = $.asv.register_page;
    var shown = null;

    $.asv.register_page = function(name, show) {
        if (name !== 'graphdisplay') {
            register(name, show);
            return;
        }
        register(name, function(params) {
            var arrives = params.benchmark !== shown;
            shown = params.benchmark;
            /* The address names no machine also when somebody has just switched the last of them on. */
            if (arrives && !params.machine && $.asv.main_json.params.machine.length > 1) {
                params.machine = [window.one_machine_of[shown]];
                var info = $.asv.parse_hash_string(window.location.hash);
                info.params.machine = params.machine;
                window.history.replaceState(null, '', $.asv.format_hash_string(info));
            }
            show(params);
        });
    };
});
