%% The echo server of the README. From this folder, after `rebar3 compile`:
%%     ERL_LIBS=../_build/default/lib escript echo.erl 8080
-module(echo).
-export([main/1, start/1]).

main([Port]) ->
    {ok, _} = start(list_to_integer(Port)),
    timer:sleep(infinity).

start(Port) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    py_reactor:start_listener(echo, #{
        port => Port,
        protocol => {my_protocols, 'MyProtocol'},
        max_connections => 10000,
        idle_timeout => 60000
    }).
