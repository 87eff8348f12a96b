%% HTTP/1.1 with connections that stay open. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript keep_alive_http.erl 8080
%%     curl http://localhost:8080/some/path
-module(keep_alive_http).
-export([main/1]).

main([Port]) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    {ok, _} = py_reactor:start_listener(http, #{
        port => list_to_integer(Port),
        protocol => {keep_alive_http, 'KeepAliveHTTP'},
        %% Milliseconds: for the first request, and without a byte after that.
        handshake_timeout => 10000,
        idle_timeout => 60000
    }),
    timer:sleep(infinity).
